//! Clients that mean no good cost themselves a call or a connection, and nothing else (I8).

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use millrace::proto::subscribe_request::Request;
use millrace::proto::subscribe_response::Response;
use millrace::proto::{
    Acknowledgement, CommitRequest, ListTopicsRequest, PartitionOffset, Subscription, TopicSelection,
};
use tonic::Code;

use crate::credit::resident;
use crate::stage::{PATIENCE, Stage, Subscriber, TOPIC, everything, id, offset, whole};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_out_of_bounds_ends_the_call_that_it_came_in() {
    let stage = Stage::start(&[]).await;
    stage.insert(1..=3, 10).await;
    let mut honest = stage.subscribe(everything()).await;
    honest.assigned().await;

    let topic = |partitions| TopicSelection { topic: TOPIC.to_owned(), partitions };
    let subscriptions = [
        (Subscription { topics: vec![topic(vec![u32::MAX])], ..everything() }, Code::NotFound),
        (Subscription { topics: vec![TopicSelection::default(); 50_000], ..everything() }, Code::NotFound),
        (Subscription { topics: vec![whole(TOPIC); 20_000], ..everything() }, Code::ResourceExhausted),
        (Subscription { group: "g".repeat(256), ..everything() }, Code::InvalidArgument),
        (Subscription { client_id: "c".repeat(256), ..everything() }, Code::InvalidArgument),
        // More bytes than a message may have.
        (Subscription { group: "g".repeat(300_000), ..everything() }, Code::OutOfRange),
    ];
    for (subscription, code) in subscriptions {
        let ended = stage.subscribe(subscription).await.ended().await;
        assert_eq!(ended.code(), code, "{ended}");
    }
    let second = Request::Subscription(everything());
    let many = Acknowledgement { id: 0, offsets: vec![PartitionOffset::default(); 10_001] };
    let any = Acknowledgement { id: 0, offsets: vec![offset(0, 0)] };
    for (request, code) in [
        (second, Code::InvalidArgument),
        (Request::Acknowledgement(many), Code::ResourceExhausted),
        // There is no group.
        (Request::Acknowledgement(any.clone()), Code::FailedPrecondition),
    ] {
        let mut stream = stage.subscribe(everything()).await;
        stream.send(request);
        assert_eq!(stream.ended().await.code(), code);
    }
    let mut early = Subscriber::silent(stage.grpc().await).await;
    early.send(Request::Acknowledgement(any));
    assert_eq!(early.ended().await.code(), Code::InvalidArgument);

    let mut grpc = stage.grpc().await;
    let names = ListTopicsRequest { topics: vec![String::new(); 10_001], ..Default::default() };
    assert_eq!(grpc.list_topics(names).await.unwrap_err().code(), Code::ResourceExhausted);
    let offsets = vec![PartitionOffset { partition: u32::MAX, ..offset(0, i64::MAX) }; 3];
    let commit = CommitRequest { group: "g".to_owned(), offsets };
    let results = grpc.commit(commit).await.unwrap().into_inner().results;
    assert!(results.iter().all(|result| result.error.is_some()), "{results:?}");

    assert!(honest.take(3).await.iter().map(id).eq(1..=3));
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_nobody_reads_take_little_memory() {
    const STREAMS: u64 = 10;
    let stage = Stage::start(&[]).await;
    let outsider = TopicSelection { topic: TOPIC.to_owned(), partitions: vec![0] };
    let outsider = Subscription { topics: vec![outsider], group: "g".to_owned(), ..everything() };
    let before = resident(&stage);
    let mut stuck = Vec::new();
    for _ in 0..STREAMS {
        let mut stream = stage.subscribe(outsider.clone()).await;
        for id in 0..20 {
            let offsets = vec![PartitionOffset::default(); 10_000];
            stream.send(Request::Acknowledgement(Acknowledgement { id, offsets }));
        }
        stuck.push(stream);
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    let each = resident(&stage).saturating_sub(before) / STREAMS;
    assert!(each < 8 << 20, "{each} bytes for answers that nobody reads");
    // Whoever reads them gets them all.
    for id in 0..20 {
        while !matches!(stuck[0].next().await.unwrap(), Some(Response::Acknowledged(answer)) if answer.id == id)
        {
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_http_or_no_grpc_cost_their_connection() {
    let stage = Stage::start(&[]).await;
    let mut honest = stage.subscribe(everything()).await;
    honest.assigned().await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let mut seed = 0x2545_f491_4f6c_dd1du64;
    for round in 0..200 {
        let mut bytes = if round % 2 == 0 { preface.to_vec() } else { Vec::new() };
        for _ in 0..round * 5 {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            bytes.push(seed as u8);
        }
        let mut stream = TcpStream::connect(("127.0.0.1", stage.millrace.http_port())).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        let _ = stream.write_all(&bytes);
        let _ = stream.read(&mut [0; 64]);
    }
    // Messages that are cut short, lie about their length, or are compressed with nothing that we know.
    for body in [&b""[..], b"\0\0\0\0", b"\0\xff\xff\xff\xff", b"\x01\0\0\0\x01a", b"\0\0\0\0\x02\xff\xff"] {
        let status = unary(&stage, "/millrace.v1.Subscriber/ListTopics", body).await;
        assert!(!matches!(status.as_deref(), Some("0")), "{body:?}: {status:?}");
    }
    assert_eq!(
        unary(&stage, "/millrace.v1.Subscriber/ListTopics", b"\0\0\0\0\0").await.as_deref(),
        Some("0")
    );
    assert_eq!(unary(&stage, "/millrace.v1.Subscriber/Nothing", b"\0\0\0\0\0").await.as_deref(), Some("12"));
    stage.insert(1..=3, 10).await;
    assert!(honest.take(3).await.iter().map(id).eq(1..=3));
}

/// Posts a body over HTTP/2 as a gRPC client would, and gives the status of the answer.
async fn unary(stage: &Stage, path: &str, body: &'static [u8]) -> Option<String> {
    let mut connection = crate::port::Http2::connect(stage).await;
    let answer = tokio::time::timeout(PATIENCE, connection.call(path, body)).await.expect("an answer");
    answer.status
}
