//! gRPC over HTTP/2 as its project specifies it (https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md): a
//! message is a flag, a length of four bytes in network order, and the message; a deadline is a header.

use std::time::Duration;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use krita_net::http::{
    BodyError, HeaderMap, HeaderValue, IncomingBody, OutgoingBody, Response, StatusCode, header,
};
use krita_proto::error::ErrorCode;
use krita_proto::frame::BODY_BYTES_MAX;
use prost::Message;

use super::CONTENT_TYPE;
use super::status::Status;
use crate::failure::Failure;

/// Flag and length.
const PREFIX_BYTES: usize = 5;

/// Longest deadline that is kept; a longer one is as good as none.
const TIMEOUT_MAX: Duration = Duration::from_secs(24 * 3600);

const MESSAGE_ENCODING: &str = "grpc-encoding";

/// Refuses what would have to be decompressed.
pub(super) fn check_encodings(headers: &HeaderMap) -> Result<(), Status> {
    match headers.get(MESSAGE_ENCODING) {
        None => Ok(()),
        Some(encoding) if encoding == "identity" => Ok(()),
        Some(encoding) => Err(Status::unimplemented(format!("messages in {encoding:?} are not read here"))),
    }
}

/// The caller's patience: `grpc-timeout`, up to eight digits and a unit.
pub(super) fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, Status> {
    let Some(value) = headers.get("grpc-timeout") else { return Ok(None) };
    let invalid = || Failure::invalid("grpc-timeout is up to eight digits and one of H, M, S, m, u, n");
    let text = value.to_str().map_err(|_| invalid())?;
    let (digits, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(invalid)?;
    let are_digits = (1..=8).contains(&digits.len()) && digits.bytes().all(|digit| digit.is_ascii_digit());
    let amount: u64 = digits.parse().ok().filter(|_| are_digits).ok_or_else(invalid)?;
    let timeout = match unit {
        "H" => Duration::from_secs(amount * 3600),
        "M" => Duration::from_secs(amount * 60),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return Err(invalid().into()),
    };
    Ok((timeout <= TIMEOUT_MAX).then_some(timeout))
}

/// Takes the messages out of a request's body, one after the other.
pub(super) struct Messages {
    body: IncomingBody,
    received: BytesMut,
}

impl Messages {
    pub(super) fn new(body: IncomingBody) -> Self {
        Self { body, received: BytesMut::new() }
    }

    /// The next message; `None` at the end of the body.
    pub(super) async fn next(&mut self, bytes_max: usize) -> Result<Option<Bytes>, Status> {
        loop {
            if let Some(length) = length_of(&self.received, bytes_max)?
                && self.received.len() >= PREFIX_BYTES + length
            {
                self.received.advance(PREFIX_BYTES);
                return Ok(Some(self.received.split_to(length).freeze()));
            }
            match self.body.chunk().await.map_err(body_failure)? {
                Some(chunk) => self.received.extend_from_slice(&chunk),
                None if self.received.is_empty() => return Ok(None),
                None => return Err(Failure::invalid("the last message is cut short").into()),
            }
        }
    }
}

/// The only message of a request, decoded by nobody yet.
pub(super) async fn only_message(body: IncomingBody) -> Result<Bytes, Status> {
    let mut received = body.collect(PREFIX_BYTES + BODY_BYTES_MAX).await.map_err(body_failure)?;
    let length = length_of(&received, BODY_BYTES_MAX)?;
    if length.is_none_or(|length| received.len() != PREFIX_BYTES + length) {
        return Err(Failure::invalid("the call takes one message, and one only").into());
    }
    received.advance(PREFIX_BYTES);
    Ok(received)
}

/// The only message of a request.
pub(super) async fn only<M: Message + Default>(body: IncomingBody) -> Result<M, Status> {
    let message = only_message(body).await?;
    M::decode(message)
        .map_err(|error| Failure::invalid(format!("the request does not decode: {error}")).into())
}

/// The length that a prefix says, once it is whole.
fn length_of(received: &[u8], bytes_max: usize) -> Result<Option<usize>, Status> {
    let Some((prefix, _)) = received.split_first_chunk::<PREFIX_BYTES>() else { return Ok(None) };
    let [flag, length @ ..] = *prefix;
    match flag {
        0 => {}
        1 => return Err(Status::unimplemented("compressed messages are not read here")),
        _ => return Err(Failure::invalid("a message begins with 0, or with 1 if it is compressed").into()),
    }
    let length = u32::from_be_bytes(length) as usize;
    if length > bytes_max {
        let message = format!("a message has at most {bytes_max} bytes, this one {length}");
        return Err(Failure::invalid(message).into());
    }
    Ok(Some(length))
}

fn body_failure(error: BodyError) -> Status {
    let code = match error {
        BodyError::TooLarge(_) | BodyError::Broken(_) => ErrorCode::InvalidArgument,
        BodyError::Timeout => ErrorCode::DeadlineExceeded,
        BodyError::Overloaded => return Failure::overloaded(error.to_string()).into(),
    };
    Failure::new(code, error.to_string()).into()
}

/// An encoded message with its prefix.
pub(super) fn framed(message: &[u8]) -> Bytes {
    let mut framed = BytesMut::with_capacity(PREFIX_BYTES + message.len());
    put_prefix(&mut framed, message.len());
    framed.extend_from_slice(message);
    framed.freeze()
}

/// A message with its prefix.
pub(super) fn frame<M: Message>(message: &M) -> Bytes {
    let length = message.encoded_len();
    let mut framed = BytesMut::with_capacity(PREFIX_BYTES + length);
    put_prefix(&mut framed, length);
    message.encode(&mut framed).expect("a growing buffer takes every message");
    framed.freeze()
}

fn put_prefix(framed: &mut BytesMut, length: usize) {
    framed.put_u8(0);
    framed.put_u32(u32::try_from(length).expect("answers are bounded far below 4 GiB"));
}

/// The answer of a call that went well, of one message.
pub(super) fn unary(framed: Bytes) -> Response<OutgoingBody> {
    with_body(OutgoingBody::with_trailers(framed, Status::ok_trailers()))
}

/// The answer whose messages and status come in the body.
pub(super) fn with_body(body: OutgoingBody) -> Response<OutgoingBody> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::OK;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_are_read_as_specified_and_nothing_else_is_one() {
        let read = |text: &'static str| {
            let headers = HeaderMap::from_iter([(
                krita_net::http::HeaderName::from_static("grpc-timeout"),
                HeaderValue::from_static(text),
            )]);
            timeout(&headers).map_err(|status| status.code())
        };
        assert_eq!(read("1H"), Ok(Some(Duration::from_secs(3600))));
        assert_eq!(read("2M"), Ok(Some(Duration::from_secs(120))));
        assert_eq!(read("99999999n"), Ok(Some(Duration::from_nanos(99_999_999))));
        assert_eq!(read("20m"), Ok(Some(Duration::from_millis(20))));
        assert_eq!(read("5u"), Ok(Some(Duration::from_micros(5))));
        assert_eq!(read("99999999H"), Ok(None), "as good as none");
        for bad in ["", "5", "S", "-1S", "+1S", "1s", "123456789m", "1 S", "1.5S"] {
            assert_eq!(read(bad), Err(3), "{bad}");
        }
        assert!(matches!(timeout(&HeaderMap::new()), Ok(None)));
    }

    #[test]
    fn prefixes_are_checked_before_memory_is_spent() {
        let length = |bytes: &[u8]| length_of(bytes, 100).map_err(|status| status.code());
        assert_eq!(length(&[0, 0, 0, 0]), Ok(None));
        assert_eq!(length(&[0, 0, 0, 0, 100, 9]), Ok(Some(100)));
        assert_eq!(length(&[0, 0, 0, 0, 101]), Err(3));
        assert_eq!(length(&[0, 255, 255, 255, 255]), Err(3));
        assert_eq!(length(&[1, 0, 0, 0, 1]), Err(12), "compressed");
        assert_eq!(length(&[2, 0, 0, 0, 1]), Err(3));
        assert_eq!(framed(b"ab"), [0, 0, 0, 0, 2, b'a', b'b'][..]);
    }
}
