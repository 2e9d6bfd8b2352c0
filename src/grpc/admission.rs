//! What is the same for every call: that a gRPC client makes it, how many there are at a time, and how long it may take.
//!
//! Each connection has a place for one call to itself, so that whoever can connect is served, and more places are shared by
//! all. Asking for the health takes none: an orchestrator that is refused would restart the broker.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, Version, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body::Frame;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};
use tonic::Status;

use crate::http::OwnPlace;

/// From the head of a request to that of its answer, whatever deadline the client gives. Single calls are answered when
/// all of the request is there; streams at once, and may go on for ever.
const MAX_WAIT: Duration = Duration::from_secs(30);
/// Calls that take no place.
const HEALTH_CHECK: &str = "/grpc.health.v1.Health/Check";

/// A message goes to the connection in parts of at most this size, so that what the client does not read stays here.
const MAX_PART: usize = 64 * 1024;

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
        Ok(answer) => answer.map(|body| Body::new(Held { body, rest: Bytes::new(), _place: place })),
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

/// The body of an answer, with the place of its call if it takes one. It is asked for more only when the connection has taken all but the
/// last part of what it gave: until then whoever made that keeps account of it (I8).
struct Held {
    body: Body,
    /// Of what it gave.
    rest: Bytes,
    _place: Option<OwnedSemaphorePermit>,
}

impl http_body::Body for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(cx)).map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(data))) => self.rest = data,
                Some(Ok(Err(trailers))) => return Poll::Ready(Some(Ok(trailers))),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
        let part = self.rest.len().min(MAX_PART);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(part)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::Router;
    use axum::body::to_bytes;
    use axum::middleware::from_fn_with_state;
    use axum::routing::post;
    use futures_util::stream;
    use http_body::Body as _;
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

    #[tokio::test]
    async fn a_large_message_goes_out_in_parts_before_the_next_is_asked_for() {
        let place = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let messages = [Bytes::from(vec![1; 2 * MAX_PART + 1]), Bytes::from_static(b"end")];
        let counted = messages.map(Ok::<_, axum::Error>).into_iter().inspect({
            let asked = asked.clone();
            move |_| {
                asked.fetch_add(1, Ordering::Relaxed);
            }
        });
        let body = Body::from_stream(futures_util::stream::iter(counted));
        let mut held = Held { body, rest: Bytes::new(), _place: Some(place) };
        for (size, messages) in [(MAX_PART, 1), (MAX_PART, 1), (1, 1), (3, 2)] {
            assert!(!http_body::Body::is_end_stream(&held));
            let frame = poll_fn(|cx| Pin::new(&mut held).poll_frame(cx)).await;
            assert_eq!(frame.unwrap().unwrap().into_data().unwrap().len(), size);
            assert_eq!(asked.load(Ordering::Relaxed), messages);
        }
        assert!(poll_fn(|cx| Pin::new(&mut held).poll_frame(cx)).await.is_none());
    }
}
