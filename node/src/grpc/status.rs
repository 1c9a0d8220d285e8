//! How a gRPC call ends: a code and a message in trailers, and what Krita knows of a failure in
//! `grpc-status-details-bin`, as google.rpc.Status with three kinds of details: krita.v1.Error (all of it),
//! google.rpc.ErrorInfo (name, number and what to do) and google.rpc.RetryInfo (when to come back).

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use krita_net::http::{HeaderMap, HeaderName, HeaderValue, OutgoingBody, Response};
use prost::Message as _;

use super::framing;
use crate::failure::Failure;

const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const DETAILS: HeaderName = HeaderName::from_static("grpc-status-details-bin");
const ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");

/// Codes of gRPC that no error of Krita has.
const CODE_OK: u8 = 0;
const CODE_NOT_FOUND: u8 = 5;
const CODE_UNIMPLEMENTED: u8 = 12;

/// Longest message that goes into a header, in bytes; whole, it is in the details.
const MESSAGE_BYTES_MAX: usize = 1024;

/// The domain of the names in google.rpc.ErrorInfo.
const DOMAIN: &str = "krita";

/// How a call ends that does not end well.
#[derive(Debug)]
pub(super) struct Status {
    code: u8,
    message: String,
    /// What Krita says of it; none for what is gRPC's own.
    failure: Option<Failure>,
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        Self { code: failure.code.row().grpc, message: failure.message.clone(), failure: Some(failure) }
    }
}

impl Status {
    /// There is no such method, or no such encoding.
    pub(super) fn unimplemented(message: impl Into<String>) -> Self {
        Self { code: CODE_UNIMPLEMENTED, message: message.into(), failure: None }
    }

    /// There is no such service.
    pub(super) fn not_found(message: impl Into<String>) -> Self {
        Self { code: CODE_NOT_FOUND, message: message.into(), failure: None }
    }

    /// The number of gRPC.
    pub(super) fn code(&self) -> u8 {
        self.code
    }

    /// The text for people.
    pub(super) fn message(&self) -> &str {
        &self.message
    }

    /// The trailers of a call that went well.
    pub(super) fn ok_trailers() -> HeaderMap {
        HeaderMap::from_iter([(STATUS, HeaderValue::from(u16::from(CODE_OK)))])
    }

    /// The trailers of a call that began to answer and failed then.
    pub(super) fn trailers(&self) -> HeaderMap {
        let mut trailers = HeaderMap::new();
        trailers.insert(STATUS, HeaderValue::from(u16::from(self.code)));
        if let Ok(message) = HeaderValue::from_str(&percent_encoded(&self.message)) {
            trailers.insert(MESSAGE, message);
        }
        if let Some(failure) = &self.failure
            && let Ok(details) = HeaderValue::from_str(&STANDARD_NO_PAD.encode(details(self.code, failure)))
        {
            trailers.insert(DETAILS, details);
        }
        if self.code == CODE_UNIMPLEMENTED {
            trailers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        }
        trailers
    }

    /// The whole answer of a call that failed before it answered anything.
    pub(super) fn trailers_only(&self) -> Response<OutgoingBody> {
        let mut response = framing::with_body(OutgoingBody::empty());
        response.headers_mut().extend(self.trailers());
        response
    }
}

/// As the specification wants it: printable ASCII as it is, the rest, and the percent sign, as `%XX`.
fn percent_encoded(message: &str) -> String {
    let mut encoded = String::new();
    for byte in message.bytes() {
        if encoded.len() >= MESSAGE_BYTES_MAX {
            break;
        }
        match byte {
            b'%' => encoded.push_str("%25"),
            b' '..=b'~' => encoded.push(char::from(byte)),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

fn details(code: u8, failure: &Failure) -> Vec<u8> {
    let row = failure.code.row();
    let mut metadata = BTreeMap::new();
    metadata.insert("number".to_owned(), (failure.code as u32).to_string());
    metadata.insert("advice".to_owned(), row.advice.to_owned());
    metadata.insert("retryable".to_owned(), row.retryable.to_string());
    let info = ErrorInfo { reason: row.name.to_owned(), domain: DOMAIN.to_owned(), metadata };
    // What does not fit a header is cut: the message is for people.
    let mut error = failure.to_wire();
    if error.message.len() > MESSAGE_BYTES_MAX {
        let end = (0..=MESSAGE_BYTES_MAX).rev().find(|end| error.message.is_char_boundary(*end));
        error.message.truncate(end.unwrap_or(0));
    }
    let message = error.message.clone();
    let mut details = vec![Any::of("krita.v1.Error", &error), Any::of("google.rpc.ErrorInfo", &info)];
    if failure.retry_after_ms > 0 {
        let delay = Duration {
            seconds: i64::from(failure.retry_after_ms / 1000),
            nanos: (failure.retry_after_ms % 1000 * 1_000_000).cast_signed(),
        };
        details.push(Any::of("google.rpc.RetryInfo", &RetryInfo { retry_delay: Some(delay) }));
    }
    RpcStatus { code: i32::from(code), message, details }.encode_to_vec()
}

/// google.rpc.Status.
#[derive(Clone, PartialEq, prost::Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<Any>,
}

/// google.protobuf.Any.
#[derive(Clone, PartialEq, prost::Message)]
struct Any {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

impl Any {
    fn of<M: prost::Message>(name: &str, message: &M) -> Self {
        Self { type_url: format!("type.googleapis.com/{name}"), value: message.encode_to_vec() }
    }
}

/// google.rpc.ErrorInfo.
#[derive(Clone, PartialEq, prost::Message)]
struct ErrorInfo {
    #[prost(string, tag = "1")]
    reason: String,
    #[prost(string, tag = "2")]
    domain: String,
    #[prost(btree_map = "string, string", tag = "3")]
    metadata: BTreeMap<String, String>,
}

/// google.rpc.RetryInfo.
#[derive(Clone, PartialEq, prost::Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    retry_delay: Option<Duration>,
}

/// google.protobuf.Duration.
#[derive(Clone, PartialEq, prost::Message)]
struct Duration {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

#[cfg(test)]
mod tests {
    use krita_proto::error::{ERRORS, ErrorCode};
    use krita_proto::v1;

    use super::*;

    #[test]
    fn every_error_carries_its_number_name_and_advice() {
        for row in &ERRORS {
            let failure = Failure { retry_after_ms: 1_250, ..Failure::new(row.code, "ä % \n") };
            let trailers = Status::from(failure).trailers();
            assert_eq!(trailers[STATUS], row.grpc.to_string());
            assert_eq!(trailers[MESSAGE], "%C3%A4 %25 %0A");
            let bytes = STANDARD_NO_PAD.decode(trailers[DETAILS].as_bytes()).unwrap();
            let status = RpcStatus::decode(&bytes[..]).unwrap();
            assert_eq!((status.code, status.message.as_str()), (i32::from(row.grpc), "ä % \n"));
            let error = v1::Error::decode(&status.details[0].value[..]).unwrap();
            assert_eq!(error.code, row.code as u32);
            let info = ErrorInfo::decode(&status.details[1].value[..]).unwrap();
            assert_eq!((info.reason.as_str(), info.domain.as_str()), (row.name, "krita"));
            assert_eq!(info.metadata["advice"], row.advice);
            assert_eq!(info.metadata["number"], (row.code as u32).to_string());
            let retry = RetryInfo::decode(&status.details[2].value[..]).unwrap().retry_delay.unwrap();
            assert_eq!((retry.seconds, retry.nanos), (1, 250_000_000));
        }
    }

    #[test]
    fn long_messages_fit_a_header() {
        let failure = Failure::new(ErrorCode::Internal, "é".repeat(10_000));
        let trailers = Status::from(failure).trailers();
        let bytes: usize = trailers.values().map(HeaderValue::len).sum();
        assert!(bytes < 6 * MESSAGE_BYTES_MAX, "{bytes}");
    }
}
