//! Ends in order: of the source, which we do not hold up (I7), and of Millrace itself.

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use millrace_test_support::{Millrace, Postgres, PostgresOptions};

use crate::stage::{caught_up, gaps, inserted};

const PROMPT: Duration = Duration::from_secs(8);

#[tokio::test(flavor = "multi_thread")]
async fn a_fast_shutdown_of_the_source_waits_for_nothing_of_ours() {
    let mut postgres = Postgres::start(PostgresOptions::default()).await;
    let client = postgres.client().await;
    client.batch_execute("CREATE TABLE t (id bigint PRIMARY KEY)").await.unwrap();
    drop(client);
    let data = tempfile::tempdir().unwrap();
    let millrace = Millrace::up(data.path(), &postgres.url(), &["--task", "shop"]).await;
    let mut rows = 0;
    // Idle; with a transaction just committed; with many.
    for count in [0, 1, 500] {
        millrace.wait_state("running").await;
        let client = postgres.client().await;
        for _ in 0..count {
            rows += 1;
            client.batch_execute(&format!("INSERT INTO t VALUES ({rows})")).await.unwrap();
        }
        drop(client);
        let started = Instant::now();
        postgres.stop_fast().await;
        let took = started.elapsed();
        assert!(took < PROMPT, "with {count} transactions the shutdown took {took:?}");
        postgres.start_again().await;
    }
    let client = postgres.client().await;
    caught_up(&millrace, &client).await;
    assert!(inserted(&millrace, "shop").await.into_iter().eq(1..=rows));
    assert_eq!(gaps(&millrace, "shop").await.len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_under_load_ends_promptly_and_the_next_start_goes_on_exactly_there() {
    let postgres =
        Postgres::start(PostgresOptions::default().setting("logical_decoding_work_mem", "64kB")).await;
    let client = postgres.client().await;
    client.batch_execute("CREATE TABLE t (id bigint PRIMARY KEY)").await.unwrap();
    let data = tempfile::tempdir().unwrap();
    let mut millrace = Millrace::up(data.path(), &postgres.url(), &["--task", "shop"]).await;
    let mut rows = 0;
    for round in 0..3 {
        // Clients that hold their connections: one says nothing, the others begin what they do not end.
        let mut held = Vec::new();
        for (port, bytes) in [
            (millrace.kafka_port(), &b""[..]),
            (millrace.kafka_port(), &b"\0\0\0\x20\0\x12"[..]),
            (millrace.http_port(), &b""[..]),
            (millrace.http_port(), &b"GET /metrics HT"[..]),
        ] {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
            stream.write_all(bytes).unwrap();
            held.push(stream);
        }
        for _ in 0..20 {
            let (first, last) = (rows + 1, rows + 1_000);
            let insert = format!("INSERT INTO t SELECT g FROM generate_series({first}, {last}) g");
            client.batch_execute(&insert).await.unwrap();
            rows = last;
        }
        tokio::time::sleep(Duration::from_millis(50 * round)).await;
        let started = Instant::now();
        millrace.sigterm();
        let status = millrace.wait().await;
        assert_eq!(status.code(), Some(0), "{}", millrace.output());
        assert!(started.elapsed() < PROMPT, "the end took {:?}", started.elapsed());
        drop(held);
        millrace.restart().await;
    }
    caught_up(&millrace, &client).await;
    assert!(inserted(&millrace, "shop").await.into_iter().eq(1..=rows), "nothing is lost or repeated");
    assert_eq!(gaps(&millrace, "shop").await.len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_while_the_source_is_away_ends_promptly() {
    let mut postgres = Postgres::start(PostgresOptions::default()).await;
    let data = tempfile::tempdir().unwrap();
    let mut millrace = Millrace::up(data.path(), &postgres.url(), &[]).await;
    postgres.stop_immediate().await;
    millrace.wait_state("retrying").await;
    // Something that takes connections and says nothing stands in its place.
    let deaf = std::net::TcpListener::bind(("127.0.0.1", postgres.port())).unwrap();
    millrace.wait_state("starting").await;
    let started = Instant::now();
    millrace.sigterm();
    let status = millrace.wait().await;
    assert_eq!(status.code(), Some(0), "{}", millrace.output());
    assert!(started.elapsed() < Duration::from_secs(5), "the end took {:?}", started.elapsed());
    drop(deaf);
}
