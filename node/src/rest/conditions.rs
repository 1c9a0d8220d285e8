//! What the headers of a request ask for: conditions on versions, the form of the answer, the form of the body, and
//! the request id that makes a retry apply once.

use krita_net::http::{HeaderMap, StatusCode, header};
use krita_proto::v1;

use super::answer::JSON;
use super::refusal::Refusal;

/// The header that carries a request id; see [`request_id`].
pub(crate) const REQUEST_ID_HEADER: &str = "krita-request-id";

/// The condition of a write: `If-Match: "12"` wants that version, `If-None-Match: *` wants the key to be absent.
pub(crate) fn write_condition(headers: &HeaderMap) -> Result<Option<v1::Condition>, Refusal> {
    let version = match (single(headers, "if-match")?, single(headers, "if-none-match")?) {
        (None, None) => return Ok(None),
        // No key is both absent and at a version, and no key ever has this one: 412, with the version that it has.
        (Some(tag), Some("*")) => version_of_tag(tag).map(|_| u64::MAX)?,
        (Some("*"), None) => {
            return Err(Refusal::invalid(
                "If-Match: * is not offered: name the version that the key must have",
            ));
        }
        (Some(tag), None) => version_of_tag(tag)?,
        (None, Some("*")) => 0,
        (_, Some(_)) => {
            return Err(Refusal::invalid(
                "a write takes If-None-Match: * alone, which wants the key to be absent",
            ));
        }
    };
    Ok(Some(v1::Condition { condition: Some(v1::condition::Condition::IfVersion(version)) }))
}

/// What a read's conditions say of the version that was found (0 = absent).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ReadVerdict {
    /// Answer in full.
    Answer,
    /// 304: the caller has this version.
    NotModified,
    /// 412: the caller wants another version.
    Failed,
}

/// The conditions of a read.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct ReadConditions {
    must_match: Option<Tags>,
    must_not_match: Option<Tags>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Tags {
    Any,
    Versions(Vec<u64>),
}

impl Tags {
    fn match_version(&self, version: u64) -> bool {
        match self {
            Self::Any => version != 0,
            Self::Versions(versions) => version != 0 && versions.contains(&version),
        }
    }
}

impl ReadConditions {
    /// The conditions that the headers state.
    pub(crate) fn of(headers: &HeaderMap) -> Result<Self, Refusal> {
        let tags = |name: &'static str| -> Result<Option<Tags>, Refusal> {
            match single(headers, name)? {
                None => Ok(None),
                Some("*") => Ok(Some(Tags::Any)),
                Some(list) => {
                    let versions = list.split(',').map(|tag| version_of_tag(tag.trim()));
                    Ok(Some(Tags::Versions(versions.collect::<Result<_, _>>()?)))
                }
            }
        };
        Ok(Self { must_match: tags("if-match")?, must_not_match: tags("if-none-match")? })
    }

    /// In the order of RFC 9110, section 13.2.2.
    pub(crate) fn judge(&self, version: u64) -> ReadVerdict {
        if self.must_match.as_ref().is_some_and(|tags| !tags.match_version(version)) {
            return ReadVerdict::Failed;
        }
        if self.must_not_match.as_ref().is_some_and(|tags| tags.match_version(version)) {
            return ReadVerdict::NotModified;
        }
        ReadVerdict::Answer
    }
}

/// The version behind an entity tag: a number in quotes, as `ETag` gave it.
fn version_of_tag(tag: &str) -> Result<u64, Refusal> {
    let digits = tag.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    let version = digits.and_then(number).filter(|version| *version > 0);
    version.ok_or_else(|| {
        Refusal::invalid(format!("{tag} is no entity tag of Krita: a version in quotes, as ETag gave it"))
    })
}

/// A header that may be given once, as text.
fn single<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, Refusal> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Refusal::invalid(format!("the header {name} is given twice")));
    }
    let text = value.to_str().map_err(|_| Refusal::invalid(format!("the header {name} is not text")))?;
    Ok(Some(text.trim()))
}

/// The request id of a write, so that a retry applies once: the native protocol's, field by field,
/// `session=1f00aa…, sequence=1, lowest_unacknowledged=1, register_until_ms=1700000000000`, the session in hexadecimal
/// digits. The last two may be left out: they are 1 and 0 then.
pub(crate) fn request_id(headers: &HeaderMap) -> Result<Option<v1::RequestId>, Refusal> {
    if headers.contains_key("idempotency-key") {
        // Whoever sends one relies on it.
        let message = "Idempotency-Key is not offered, since a key alone cannot tell a late retry from a new \
                       request: use Krita-Request-Id, see docs/protocol.md";
        return Err(Refusal::invalid(message));
    }
    let Some(text) = single(headers, REQUEST_ID_HEADER)? else { return Ok(None) };
    let mut id = v1::RequestId { lowest_unacknowledged: 1, ..Default::default() };
    let mut given: Vec<&str> = Vec::new();
    for field in text.split(',') {
        let (name, value) = field.trim().split_once('=').unwrap_or((field.trim(), ""));
        if given.contains(&name) {
            return Err(Refusal::invalid(format!("Krita-Request-Id names {name} twice")));
        }
        given.push(name);
        let number = match name {
            "session" => hexadecimal(value).map(|session| id.session = session),
            "sequence" => number(value).map(|sequence| id.sequence = sequence),
            "lowest_unacknowledged" => number(value).map(|lowest| id.lowest_unacknowledged = lowest),
            "register_until_ms" => number(value).map(|until| id.register_until_ms = until),
            _ => return Err(Refusal::invalid(format!("Krita-Request-Id knows no field {name:?}"))),
        };
        if number.is_none() {
            return Err(Refusal::invalid(format!("Krita-Request-Id: {name} is no number: {value:?}")));
        }
    }
    if id.session == 0 || id.sequence == 0 || id.lowest_unacknowledged == 0 {
        return Err(Refusal::invalid(
            "Krita-Request-Id needs a session and a sequence, and none of its numbers but register_until_ms is 0",
        ));
    }
    Ok(Some(id))
}

/// A decimal number: digits alone.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

/// One to sixteen hexadecimal digits.
fn hexadecimal(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    digits.then(|| u64::from_str_radix(text, 16).ok()).flatten()
}

/// Which of the forms on offer the caller takes best (RFC 9110, section 12.5.1); the first where it does not care.
pub(crate) fn negotiate(headers: &HeaderMap, offered: &[&'static str]) -> Result<&'static str, Refusal> {
    let lines = headers.get_all(header::ACCEPT).iter();
    let accepted: Vec<&str> =
        lines.filter_map(|line| line.to_str().ok()).flat_map(|line| line.split(',')).collect();
    let default = offered.first().copied().unwrap_or(JSON);
    if accepted.iter().all(|range| range.trim().is_empty()) {
        return Ok(default);
    }
    let mut best: Option<(u32, &'static str)> = None;
    for form in offered {
        let quality = quality(&accepted, form);
        if quality > best.map_or(0, |(quality, _)| quality) {
            best = Some((quality, form));
        }
    }
    best.map(|(_, form)| form).ok_or_else(|| {
        let message = format!("this answer comes as {}", offered.join(" or "));
        Refusal::with_status(StatusCode::NOT_ACCEPTABLE, message)
    })
}

/// How much a caller likes a form, in thousandths: what the most specific of its ranges says.
fn quality(accepted: &[&str], form: &str) -> u32 {
    let kind = form.split('/').next().unwrap_or_default();
    let mut found = (0, 0);
    for range in accepted {
        let mut parts = range.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default();
        let specificity = match name.split_once('/') {
            _ if name.eq_ignore_ascii_case(form) => 3,
            Some((range_kind, "*")) if range_kind.eq_ignore_ascii_case(kind) => 2,
            Some(("*", "*")) => 1,
            Some(_) | None => continue,
        };
        let weight = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
        let thousandths = match weight.map(str::parse::<f32>) {
            None => 1000,
            // The cast saturates, and makes 0 of what is no number.
            Some(Ok(weight)) => (weight.clamp(0.0, 1.0) * 1000.0) as u32,
            Some(Err(_)) => 0,
        };
        if specificity > found.0 {
            found = (specificity, thousandths);
        }
    }
    found.1
}

/// Whether the body is JSON, by its content type's essence.
pub(crate) fn is_json(headers: &HeaderMap) -> bool {
    let text = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    text.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(JSON)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rest::answer::BYTES;
    use krita_net::http::{HeaderName, HeaderValue};

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            let (name, value) = (name.parse::<HeaderName>().unwrap(), value.parse::<HeaderValue>().unwrap());
            headers.append(name, value);
        }
        headers
    }

    fn wanted(pairs: &[(&str, &str)]) -> Option<u64> {
        match write_condition(&headers(pairs)).unwrap()?.condition? {
            v1::condition::Condition::IfVersion(version) => Some(version),
            v1::condition::Condition::IfValue(_) => None,
        }
    }

    #[test]
    fn writes_are_conditional_on_one_version() {
        assert_eq!(wanted(&[]), None);
        assert_eq!(wanted(&[("if-match", "\"12\"")]), Some(12));
        assert_eq!(wanted(&[("if-none-match", "*")]), Some(0));
        assert_eq!(wanted(&[("if-match", "\"1\""), ("if-none-match", "*")]), Some(u64::MAX));
        for bad in [
            &[("if-match", "*")][..],
            &[("if-match", "12")],
            &[("if-match", "W/\"12\"")],
            &[("if-match", "\"0\"")],
            &[("if-match", "\"1\", \"2\"")],
            &[("if-match", "\"+1\"")],
            &[("if-match", "\"18446744073709551616\"")],
            &[("if-match", "\"1\""), ("if-match", "\"1\"")],
            &[("if-match", "\"1\""), ("if-none-match", "\"1\"")],
            &[("if-none-match", "\"1\"")],
        ] {
            assert!(write_condition(&headers(bad)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn reads_are_judged_by_what_was_found() {
        let judge =
            |pairs: &[(&str, &str)], version| ReadConditions::of(&headers(pairs)).unwrap().judge(version);
        assert_eq!(judge(&[], 0), ReadVerdict::Answer);
        assert_eq!(judge(&[("if-none-match", "\"7\", \"8\"")], 8), ReadVerdict::NotModified);
        assert_eq!(judge(&[("if-none-match", "\"7\"")], 8), ReadVerdict::Answer);
        assert_eq!(judge(&[("if-none-match", "*")], 0), ReadVerdict::Answer);
        assert_eq!(judge(&[("if-match", "\"7\"")], 8), ReadVerdict::Failed);
        assert_eq!(judge(&[("if-match", "*")], 0), ReadVerdict::Failed);
        assert_eq!(judge(&[("if-match", "*"), ("if-none-match", "\"8\"")], 8), ReadVerdict::NotModified);
    }

    #[test]
    fn request_ids_are_whole_or_refused() {
        let id = |text: &str| request_id(&headers(&[(REQUEST_ID_HEADER, text)]));
        let expected =
            v1::RequestId { session: 0x1f, sequence: 2, lowest_unacknowledged: 1, register_until_ms: 9 };
        assert_eq!(id("session=1F, sequence=2,register_until_ms=9").unwrap(), Some(expected));
        assert_eq!(request_id(&headers(&[])).unwrap(), None);
        for bad in [
            "",
            "session=1",
            "sequence=1",
            "session=0, sequence=1",
            "session=1, sequence=0",
            "session=1, sequence=1, session=2",
            "session=1, sequence=1, lowest_unacknowledged=0",
            "session=x, sequence=1",
            "session=12345678901234567, sequence=1",
            "session=1, sequence=1, colour=blue",
        ] {
            assert!(id(bad).is_err(), "{bad}");
        }
        let relied_on = request_id(&headers(&[("idempotency-key", "abc")]));
        assert!(relied_on.is_err_and(|refusal| refusal.failure.message.contains("Krita-Request-Id")));
    }

    #[test]
    fn the_best_form_is_chosen() {
        let choose = |accept: &str| negotiate(&headers(&[("accept", accept)]), &[BYTES, JSON]).ok();
        assert_eq!(negotiate(&headers(&[]), &[BYTES, JSON]).ok(), Some(BYTES));
        assert_eq!(choose("*/*"), Some(BYTES));
        assert_eq!(choose("application/json"), Some(JSON));
        assert_eq!(choose("application/json;q=0.5, */*;q=0.9"), Some(BYTES));
        assert_eq!(choose("application/octet-stream;q=0, */*"), Some(JSON));
        assert_eq!(choose("Application/*"), Some(BYTES));
        assert_eq!(choose("text/html"), None);
        assert_eq!(choose("application/json;q=x"), None);
        assert!(is_json(&headers(&[("content-type", "Application/JSON; charset=utf-8")])));
        assert!(!is_json(&headers(&[("content-type", "application/jsonl")])));
    }
}
