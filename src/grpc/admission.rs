//! What is the same for every call: that a gRPC client makes it, how many there are at a time, and the deadline that the
//! client gives it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, Version, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body::{Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};
use tonic::Status;

/// Places for calls.
#[derive(Clone)]
pub struct Admission(pub Arc<Semaphore>);

/// When the client gives up, as an extension of its request.
#[derive(Debug, Clone, Copy)]
pub struct Deadline(pub Instant);

/// Refuses what no gRPC client sends. A browser posts what a page elsewhere tells it to, to any address and unasked, as
/// long as it looks like a form; and HTTP/1.1 has no pings to tell whether a client is still there.
pub async fn only_grpc(request: Request, next: Next) -> Response {
    let headers = request.headers();
    let content_type = headers.get(header::CONTENT_TYPE).map_or(&[][..], HeaderValue::as_bytes);
    let refused = if request.version() != Version::HTTP_2 {
        (StatusCode::HTTP_VERSION_NOT_SUPPORTED, "gRPC is served over HTTP/2\n")
    } else if headers.contains_key(header::ORIGIN) {
        (StatusCode::FORBIDDEN, "web pages are not served\n")
    } else if !content_type.starts_with(b"application/grpc") {
        (StatusCode::UNSUPPORTED_MEDIA_TYPE, "gRPC has the content type application/grpc\n")
    } else {
        return next.run(request).await;
    };
    refused.into_response()
}

/// Lets a call in if there is a place, which it keeps until its answer has been sent, and ends it at its deadline.
pub async fn admit(State(places): State<Admission>, mut request: Request, next: Next) -> Response {
    let Ok(place) = places.0.try_acquire_owned() else {
        return Status::resource_exhausted("the broker has as many calls as it takes; try again later")
            .into_http();
    };
    let deadline = match request.headers().get("grpc-timeout").map(parse_timeout) {
        Some(None) => return Status::invalid_argument("the header grpc-timeout is malformed").into_http(),
        Some(Some(timeout)) => Some(Deadline(Instant::now() + timeout)),
        None => None,
    };
    let answer = match deadline {
        Some(deadline) => {
            request.extensions_mut().insert(deadline);
            timeout_at(deadline.0, next.run(request)).await
        }
        None => Ok(next.run(request).await),
    };
    match answer {
        Ok(answer) => answer.map(|body| Body::new(Held { body, _place: place })),
        Err(_) => Status::deadline_exceeded("the call took longer than its deadline allows").into_http(),
    }
}

/// `<up to 8 digits><unit>`, as gRPC over HTTP/2 has it.
fn parse_timeout(value: &HeaderValue) -> Option<Duration> {
    let (unit, digits) = value.as_bytes().split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    match unit {
        b'H' => Some(Duration::from_secs(number * 3600)),
        b'M' => Some(Duration::from_secs(number * 60)),
        b'S' => Some(Duration::from_secs(number)),
        b'm' => Some(Duration::from_millis(number)),
        b'u' => Some(Duration::from_micros(number)),
        b'n' => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

/// The body of an answer, with the place of its call.
struct Held {
    body: Body,
    _place: OwnedSemaphorePermit,
}

impl http_body::Body for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_read_as_grpc_writes_it() {
        let parse = |text: &'static str| parse_timeout(&HeaderValue::from_static(text));
        assert_eq!(parse("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        assert_eq!(parse("2M"), Some(Duration::from_secs(120)));
        assert_eq!(parse("1500m"), Some(Duration::from_millis(1500)));
        assert_eq!(parse("7u"), Some(Duration::from_micros(7)));
        assert_eq!(parse("0n"), Some(Duration::ZERO));
        for text in ["", "S", "1", "1s", "-1S", "+1S", "100000000S", "1.5S"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
