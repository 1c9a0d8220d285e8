//! What stands in a request's target: the path's key and the query's parameters, percent-decoded strictly. A
//! parameter that the operation does not know, or that comes twice, is an error: a misspelt one must not be ignored.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use krita_proto::routing::TIMEOUT_MS_MAX;
use krita_proto::v1;

use super::refusal::Refusal;
use super::routes::{Location, Operation};

/// Base64 for URLs (RFC 4648, section 5), written without padding and read with or without.
pub(crate) const BASE64_URL: GeneralPurpose = GeneralPurpose::new(
    &alphabet::URL_SAFE,
    GeneralPurposeConfig::new()
        .with_encode_padding(false)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// How the bytes of keys stand in the target of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum KeyEncoding {
    /// The key's own bytes, percent-encoded where a URL demands it.
    Plain,
    /// Base64 for URLs, so that no proxy, shell or library can change them.
    Base64Url,
}

impl KeyEncoding {
    /// The key that stands in the target as `bytes`, which have been percent-decoded.
    pub(crate) fn decode(self, bytes: Vec<u8>, what: &str) -> Result<Bytes, Refusal> {
        match self {
            Self::Plain => Ok(Bytes::from(bytes)),
            Self::Base64Url => BASE64_URL
                .decode(bytes)
                .map(Bytes::from)
                .map_err(|error| Refusal::invalid(format!("{what} is not base64url: {error}"))),
        }
    }
}

/// The parameters of a query, each known to the operation and given once.
#[derive(Debug)]
pub(crate) struct Query {
    parameters: Vec<(String, Vec<u8>)>,
}

impl Query {
    /// Parses a target's query for an operation.
    pub(crate) fn parse(text: Option<&str>, operation: &Operation) -> Result<Self, Refusal> {
        let mut parameters: Vec<(String, Vec<u8>)> = Vec::new();
        for pair in text.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = String::from_utf8(percent_decode(name, Plus::IsSpace)?)
                .map_err(|_| Refusal::invalid("the name of a query parameter is not UTF-8"))?;
            let known = operation.parameters.iter().filter(|parameter| parameter.location == Location::Query);
            if !known.clone().any(|parameter| parameter.name == name) {
                let names: Vec<&str> = known.map(|parameter| parameter.name).collect();
                let known = match names.is_empty() {
                    true => "there are none here".to_owned(),
                    false => format!("known here: {}", names.join(", ")),
                };
                return Err(Refusal::invalid(format!("unknown query parameter {name:?}; {known}")));
            }
            if parameters.iter().any(|(given, _)| *given == name) {
                return Err(Refusal::invalid(format!("the query parameter {name} is given twice")));
            }
            parameters.push((name, percent_decode(value, Plus::IsSpace)?));
        }
        Ok(Self { parameters })
    }

    /// A parameter's bytes.
    pub(crate) fn bytes(&self, name: &str) -> Option<&[u8]> {
        self.parameters.iter().find(|(given, _)| given == name).map(|(_, value)| &value[..])
    }

    /// A parameter's text.
    pub(crate) fn text(&self, name: &str) -> Result<Option<&str>, Refusal> {
        let Some(bytes) = self.bytes(name) else { return Ok(None) };
        let text = std::str::from_utf8(bytes);
        text.map(Some).map_err(|_| Refusal::invalid(format!("the query parameter {name} is not UTF-8")))
    }

    /// Whether a switch is on: `?name=true`; by itself (`?name`) it is on as well.
    pub(crate) fn switch(&self, name: &str) -> Result<bool, Refusal> {
        match self.text(name)? {
            None | Some("false") => Ok(false),
            Some("true" | "") => Ok(true),
            Some(other) => Err(Refusal::invalid(format!("{name} is true or false, not {other:?}"))),
        }
    }

    /// A whole number within bounds.
    pub(crate) fn number(&self, name: &str, least: u32, most: u32) -> Result<Option<u32>, Refusal> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let number = digits.then(|| text.parse().ok()).flatten();
        match number.filter(|number| (least..=most).contains(number)) {
            Some(number) => Ok(Some(number)),
            None => Err(Refusal::invalid(format!(
                "{name} is a whole number from {least} to {most}, not {text:?}"
            ))),
        }
    }

    /// `timeout_ms`: how long the caller waits; 0 = the server's default, which cannot be asked for by number.
    pub(crate) fn timeout_ms(&self) -> Result<u32, Refusal> {
        Ok(self.number("timeout_ms", 1, TIMEOUT_MS_MAX)?.unwrap_or(0))
    }

    /// `key_encoding`: how keys stand in this target.
    pub(crate) fn key_encoding(&self) -> Result<KeyEncoding, Refusal> {
        match self.text("key_encoding")? {
            None | Some("plain") => Ok(KeyEncoding::Plain),
            Some("base64url") => Ok(KeyEncoding::Base64Url),
            Some(other) => {
                Err(Refusal::invalid(format!("key_encoding is plain or base64url, not {other:?}")))
            }
        }
    }

    /// A parameter that names a key or a part of one, in the encoding that the query asks for.
    pub(crate) fn key(&self, name: &str) -> Result<Option<Bytes>, Refusal> {
        let encoding = self.key_encoding()?;
        self.bytes(name).map(|bytes| encoding.decode(bytes.to_vec(), name)).transpose()
    }

    /// `consistency`: how fresh the answer must be.
    pub(crate) fn consistency(&self) -> Result<v1::Consistency, Refusal> {
        match self.text("consistency")? {
            None | Some("linearizable") => Ok(v1::Consistency::Linearizable),
            Some("available") => Ok(v1::Consistency::Available),
            Some("any") => Ok(v1::Consistency::Any),
            Some(other) => {
                Err(Refusal::invalid(format!("consistency is linearizable, available or any, not {other:?}")))
            }
        }
    }
}

/// What `+` stands for: a space in the values of forms and queries, itself in paths.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Plus {
    IsSpace,
    IsItself,
}

/// Decodes `%41` to `A`. A percent sign without two hexadecimal digits is an error, not itself.
pub(crate) fn percent_decode(text: &str, plus: Plus) -> Result<Vec<u8>, Refusal> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                match (digit(), digit()) {
                    // Two hexadecimal digits fit a byte.
                    (Some(high), Some(low)) => (high << 4 | low) as u8,
                    _ => return Err(Refusal::invalid("a % without two hexadecimal digits behind it")),
                }
            }
            b'+' if plus == Plus::IsSpace => b' ',
            other => other,
        });
    }
    Ok(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rest::routes::{Endpoint, operation_of};

    fn parse(text: &str) -> Result<Query, Refusal> {
        Query::parse(Some(text), operation_of(Endpoint::Scan))
    }

    fn message<T: std::fmt::Debug>(result: Result<T, Refusal>) -> String {
        result.expect_err("it is refused").failure.message
    }

    #[test]
    fn percents_are_decoded_strictly() {
        assert_eq!(percent_decode("a%2Fb%00%ff+", Plus::IsItself).unwrap(), b"a/b\0\xff+");
        assert_eq!(percent_decode("a+b%2B", Plus::IsSpace).unwrap(), b"a b+");
        for bad in ["%", "%4", "%g0", "%+1", "%%41"] {
            assert!(percent_decode(bad, Plus::IsItself).is_err(), "{bad}");
        }
    }

    #[test]
    fn parameters_are_known_given_once_and_typed() {
        let query = parse("prefix=a%20b&limit=10&keys_only&timeout_ms=600000&").unwrap();
        assert_eq!(query.key("prefix").unwrap().as_deref(), Some(&b"a b"[..]));
        assert_eq!(query.number("limit", 1, 100).unwrap(), Some(10));
        assert!(query.switch("keys_only").unwrap());
        assert_eq!(query.timeout_ms().unwrap(), 600_000);
        assert!(message(parse("prefx=a")).contains("known here: prefix"));
        assert!(message(parse("prefix=a&prefix=b")).contains("twice"));
        for bad in
            ["limit=", "limit=0", "limit=101", "limit=-1", "limit=+1", "limit=99999999999", "limit=1%00"]
        {
            assert!(parse(bad).unwrap().number("limit", 1, 100).is_err(), "{bad}");
        }
        assert!(parse("keys_only=1").unwrap().switch("keys_only").is_err());
        assert!(parse("consistency=bounded").unwrap().consistency().is_err());
        assert_eq!(parse("consistency=any").unwrap().consistency().unwrap(), v1::Consistency::Any);
    }

    #[test]
    fn keys_may_be_base64url() {
        let query = parse("key_encoding=base64url&prefix=AP8&start=AP8%3D&end=A").unwrap();
        assert_eq!(query.key("prefix").unwrap().as_deref(), Some(&b"\x00\xff"[..]));
        assert_eq!(query.key("start").unwrap().as_deref(), Some(&b"\x00\xff"[..]));
        assert!(message(query.key("end")).contains("end is not base64url"));
        assert!(parse("key_encoding=hex").unwrap().key_encoding().is_err());
    }
}
