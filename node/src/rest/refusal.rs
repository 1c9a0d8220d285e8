//! How a request over REST fails: one shape of JSON, whose code and name are those of the error table, with the
//! HTTP status of the table's row or a more specific one.

use krita_net::http::{HeaderValue, OutgoingBody, Response, StatusCode, header};
use krita_proto::error::ErrorCode;
use serde_json::{Map, Value, json};

use super::answer;
use crate::failure::Failure;

/// What stands in place of the table's name where a read finds no key: nothing went wrong, so the table has no row
/// for it, and the code is 0.
pub(crate) const NOT_FOUND: &str = "NOT_FOUND";

/// A request's bad end, with what HTTP adds to it.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    pub(crate) failure: Failure,
    /// Where HTTP has a status that says more than the one of the table's row.
    status: Option<StatusCode>,
    /// 405: the methods that there are.
    allow: Option<&'static str>,
    is_absent_key: bool,
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        Self { failure, status: None, allow: None, is_absent_key: false }
    }
}

impl Refusal {
    /// 400: the request breaks a rule.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Failure::invalid(message).into()
    }

    /// The request breaks a rule for which HTTP has a status of its own.
    pub(crate) fn with_status(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status: Some(status), ..Self::invalid(message) }
    }

    /// 405: the path knows other methods.
    pub(crate) fn method(allow: &'static str) -> Self {
        let message = format!("this path takes {allow}");
        Self { allow: Some(allow), ..Self::with_status(StatusCode::METHOD_NOT_ALLOWED, message) }
    }

    /// 404: the key has no value.
    pub(crate) fn absent_key() -> Self {
        Self { is_absent_key: true, ..Self::with_status(StatusCode::NOT_FOUND, "the key is absent") }
    }

    /// The status that the caller sees.
    pub(crate) fn status(&self) -> StatusCode {
        let of_row = || StatusCode::from_u16(self.failure.code.row().http);
        self.status.unwrap_or_else(|| of_row().unwrap_or(StatusCode::INTERNAL_SERVER_ERROR))
    }

    /// The value of `error` in the answer's body, and of results within answers.
    pub(crate) fn to_json(&self) -> Value {
        let Failure { code, message, retry_after_ms, current_version, operation, hint, log_time_ms } =
            &self.failure;
        let row = code.row();
        let mut error = Map::new();
        let (number, name, action) = match self.is_absent_key {
            true => (0, NOT_FOUND, "nothing is wrong: put a value first, if there should be one"),
            false => (*code as u32, row.name, row.advice),
        };
        error.insert("code".to_owned(), json!(number));
        error.insert("name".to_owned(), json!(name));
        error.insert("message".to_owned(), json!(message));
        error.insert("action".to_owned(), json!(action));
        if *retry_after_ms > 0 {
            error.insert("retry_after_ms".to_owned(), json!(retry_after_ms));
        }
        if *code == ErrorCode::ConditionFailed {
            error.insert("current_version".to_owned(), json!(current_version));
            error.insert("operation".to_owned(), json!(operation));
        }
        if let Some(hint) = hint {
            error.insert("leader_node".to_owned(), json!(hint.node_number));
        }
        if *code == ErrorCode::UnknownOutcome && *log_time_ms > 0 {
            error.insert("log_time_ms".to_owned(), json!(log_time_ms));
        }
        Value::Object(error)
    }

    /// The answer.
    pub(crate) fn response(&self) -> Response<OutgoingBody> {
        let status = self.status();
        let mut response = answer::json(status, &json!({ "error": self.to_json() }));
        let headers = response.headers_mut();
        if self.failure.retry_after_ms > 0 {
            // The header knows whole seconds only.
            let seconds = self.failure.retry_after_ms.div_ceil(1000);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(allow) = self.allow {
            headers.insert(header::ALLOW, HeaderValue::from_static(allow));
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"krita\""));
        }
        if self.failure.code == ErrorCode::ConditionFailed && self.failure.current_version > 0 {
            headers.insert(header::ETAG, answer::etag(self.failure.current_version));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use krita_proto::error::ERRORS;

    #[test]
    fn every_row_of_the_table_is_an_answer_with_its_status() {
        for row in &ERRORS {
            let refusal = Refusal::from(Failure::new(row.code, "why"));
            assert_eq!(refusal.response().status().as_u16(), row.http, "{}", row.name);
            let error = refusal.to_json();
            assert_eq!(error["code"], row.code as u32);
            assert_eq!(error["name"], row.name);
            assert_eq!(error["action"], row.advice);
        }
    }

    #[test]
    fn what_to_do_stands_in_headers_too() {
        let overloaded = Refusal::from(Failure::overloaded("busy")).response();
        assert_eq!(overloaded.headers()[header::RETRY_AFTER], "1");
        let method = Refusal::method("GET, HEAD").response();
        assert_eq!(
            (method.status().as_u16(), &method.headers()[header::ALLOW]),
            (405, &"GET, HEAD".parse().unwrap())
        );
        let failure = Failure { current_version: 7, ..Failure::new(ErrorCode::ConditionFailed, "no") };
        assert_eq!(Refusal::from(failure).response().headers()[header::ETAG], "\"7\"");
        assert_eq!(Refusal::absent_key().to_json()["name"], NOT_FOUND);
    }

    #[test]
    fn an_unknown_outcome_has_a_status_that_nothing_else_has() {
        let unknown = ErrorCode::UnknownOutcome.row().http;
        assert_eq!(ERRORS.iter().filter(|row| row.http == unknown).count(), 1);
    }
}
