//! What is the same for every call: that a gRPC client makes it, how many there are at a time, and how long it may take.
//!
//! Each connection has a place for one call to itself, so that whoever can connect is served, and more places are shared by
//! all. Asking for the health takes none: an orchestrator that is refused would restart the broker.

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

use crate::http::OwnPlace;

/// From the head of a request to that of its answer, whatever deadline the client gives. Single calls are answered when
/// all of the request is there; streams at once, and may go on for ever.
const MAX_WAIT: Duration = Duration::from_secs(30);
/// Calls that take no place.
const HEALTH_CHECK: &str = "/grpc.health.v1.Health/Check";

/// The places for calls that all connections share.
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
pub async fn admit(State(shared): State<Admission>, mut request: Request, next: Next) -> Response {
    let mut place = None;
    if request.uri().path() != HEALTH_CHECK {
        let own =
            request.extensions().get::<OwnPlace>().and_then(|own| own.0.clone().try_acquire_owned().ok());
        place = own.or_else(|| shared.0.try_acquire_owned().ok());
        if place.is_none() {
            return Status::resource_exhausted("the broker has as many calls as it takes; try again later")
                .into_http();
        }
    }
    let now = Instant::now();
    let mut until = now + MAX_WAIT;
    match request.headers().get("grpc-timeout").map(parse_timeout) {
        Some(None) => return Status::invalid_argument("the header grpc-timeout is malformed").into_http(),
        Some(Some(timeout)) => {
            request.extensions_mut().insert(Deadline(now + timeout));
            until = until.min(now + timeout);
        }
        None => {}
    }
    match timeout_at(until, next.run(request)).await {
        Ok(answer) => answer.map(|body| Body::new(Held { body, _place: place })),
        Err(_) => {
            let message = format!("the call took longer than its deadline allows, or than {MAX_WAIT:?}");
            Status::deadline_exceeded(message).into_http()
        }
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

/// The body of an answer, with the place of its call if it takes one.
struct Held {
    body: Body,
    _place: Option<OwnedSemaphorePermit>,
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
    use axum::Router;
    use axum::body::to_bytes;
    use axum::middleware::from_fn_with_state;
    use axum::routing::post;
    use futures_util::stream;
    use hyper::service::Service;
    use hyper_util::service::TowerToHyperService;

    use super::*;

    /// Calls whose answers are awaited by nobody, with two shared places.
    fn calls() -> TowerToHyperService<Router> {
        let admission = Admission(Arc::new(Semaphore::new(2)));
        let read = |request: Request| async { to_bytes(request.into_body(), 100).await.unwrap_or_default() };
        let router = Router::new().route("/call", post(read)).route(HEALTH_CHECK, post(read));
        TowerToHyperService::new(router.layer(from_fn_with_state(admission, admit)))
    }

    fn status(answer: &Response) -> Option<&str> {
        answer.headers().get("grpc-status").map(|status| status.to_str().unwrap())
    }

    #[tokio::test]
    async fn each_connection_has_a_place_to_itself_and_health_needs_none() {
        let calls = calls();
        let call = async |path: &str, own: &OwnPlace| {
            let request = Request::post(path).extension(own.clone()).body(Body::empty()).unwrap();
            calls.call(request).await.unwrap()
        };
        let (greedy, modest) = (OwnPlace::default(), OwnPlace::default());
        let mut held = Vec::new();
        for _ in 0..3 {
            held.push(call("/call", &greedy).await);
            assert_eq!(status(&held[held.len() - 1]), None);
        }
        assert_eq!(status(&call("/call", &greedy).await), Some("8"));
        assert_eq!(status(&call(HEALTH_CHECK, &greedy).await), None);
        let served = call("/call", &modest).await;
        assert_eq!(status(&served), None);
        assert_eq!(status(&call("/call", &modest).await), Some("8"));
        held.pop();
        assert_eq!(status(&call("/call", &modest).await), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_never_ends_gives_its_place_back() {
        let calls = calls();
        let endless = Body::from_stream(stream::pending::<Result<Bytes, axum::Error>>());
        let began = Instant::now();
        let request = Request::post("/call").header("grpc-timeout", "1H").body(endless).unwrap();
        let answer = calls.call(request).await.unwrap();
        assert_eq!((status(&answer), began.elapsed()), (Some("4"), MAX_WAIT));
    }

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
