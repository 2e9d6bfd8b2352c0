//! How streams end: by the client's wish, at their deadline, with the broker.

use std::time::{Duration, Instant};

use millrace::proto::Subscription;
use tonic::{Code, Request};

use crate::stage::{Stage, Subscriber, everything};

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_stream_is_gone_at_once() {
    let stage = Stage::start(&[]).await;
    let mut stream = stage.subscribe(everything()).await;
    stream.assigned().await;
    assert_eq!(stage.metric("millrace_grpc_subscribers"), 1.0);
    drop(stream);
    stage.wait_metric("millrace_grpc_subscribers", 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_at_its_deadline() {
    let stage = Stage::start(&[]).await;
    let mut client = stage.grpc().await;
    let subscription = millrace::proto::subscribe_request::Request::Subscription(everything());
    let first = millrace::proto::SubscribeRequest { request: Some(subscription) };
    let open = futures_util::stream::once(async { first });
    let mut request = Request::new(futures_util::StreamExt::chain(open, futures_util::stream::pending()));
    request.set_timeout(Duration::from_millis(500));
    let mut responses = client.subscribe(request).await.unwrap().into_inner();
    assert!(responses.message().await.unwrap().is_some());
    let started = Instant::now();
    let ended = responses.message().await.unwrap_err();
    assert_eq!(ended.code(), Code::DeadlineExceeded, "{ended}");
    assert!(started.elapsed() < Duration::from_secs(5));
    stage.wait_metric("millrace_grpc_subscribers", 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_broker_stops_streams_are_told_to_come_again() {
    let mut stage = Stage::start(&[]).await;
    let mut waiting = stage.subscribe(everything()).await;
    waiting.assigned().await;
    let mut stalled = stage.subscribe(Subscription { credit: None, ..everything() }).await;
    stalled.assigned().await;
    let mut silent = Subscriber::silent(stage.grpc().await).await;
    let started = Instant::now();
    stage.millrace.sigterm();
    for stream in [&mut waiting, &mut stalled, &mut silent] {
        let ended = stream.ended().await;
        assert_eq!(ended.code(), Code::Unavailable, "{ended}");
    }
    assert_eq!(stage.millrace.wait().await.code(), Some(0), "{}", stage.millrace.output());
    assert!(started.elapsed() < Duration::from_secs(5), "the end took {:?}", started.elapsed());
}
