//! What hinders the reader of existing rows: it leads on, or says what to do, and the source holds nothing for ever.

use std::time::Duration;

use millrace::postgres::snapshot::{ReadFrom, ReadOptions};
use millrace_test_support::PostgresOptions;
use tokio::time::{Instant, sleep};
use tokio_postgres::Client;

use crate::reading::{Reading, slow};
use crate::stage::run;

const SETUP: &str = "
    CREATE TABLE keyed (id int PRIMARY KEY, v text);
    INSERT INTO keyed SELECT i, repeat(i::text, 20) FROM generate_series(1, 12000) i;
    CREATE TABLE keyless (v text); INSERT INTO keyless SELECT v FROM keyed;
    ANALYZE keyed, keyless;
    CREATE ROLE reader LOGIN PASSWORD 'secret'; GRANT SELECT ON keyed, keyless TO reader;";

/// Sessions of a reader that keep VACUUM from removing anything.
const HOLDS: &str = "SELECT count(*) FROM pg_stat_activity
    WHERE application_name = 'millrace' AND backend_xmin IS NOT NULL AND state = 'idle in transaction'";

#[tokio::test(flavor = "multi_thread")]
async fn limits_of_a_role_and_lost_connections_do_not_keep_rows_from_being_read() {
    let mut reading = Reading::start(SETUP).await;
    let mut limits = vec![
        "statement_timeout = '100ms'",
        "lock_timeout = '1ms'",
        "idle_in_transaction_session_timeout = '100ms'",
        "idle_session_timeout = '1s'",
        // What is sorted for a chunk does not fit in memory, and may not go to disk.
        "enable_indexscan = off",
        "enable_bitmapscan = off",
        "work_mem = '64kB'",
        "temp_file_limit = '64kB'",
    ];
    if reading.postgres.major() >= 17 {
        limits.push("transaction_timeout = '1s'");
    }
    for limit in limits {
        run(&reading.client, &format!("ALTER ROLE reader SET {limit}")).await;
    }
    let url = reading.postgres.url_for("reader", "secret", "postgres");
    let wanted = vec![
        reading.wanted("keyed", 1, ReadFrom::FirstKey).await,
        reading.wanted("keyless", 1, ReadFrom::Start).await,
    ];
    let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
               WHERE usename = 'reader' AND query ~ '^(BEGIN|COMMIT)' AND query !~ 'READ ONLY$'";
    let disturb = async |client: &Client, chunks: u64| {
        if matches!(chunks, 2 | 4 | 6) {
            client.query_one(end, &[]).await.unwrap();
        }
    };
    reading.read_as(&url, slow(), wanted, disturb).await;
    for table in ["keyed", "keyless"] {
        reading.expect_whole(table).await;
        assert_eq!(reading.told(table).await.epoch, 1, "{table}");
    }
    let log = reading.postgres.log();
    for happened in ["temporary file size exceeds", "terminating connection due to administrator command"] {
        assert!(log.contains(happened), "{happened} did not happen");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_source_ends_a_snapshot_that_has_become_too_old_though_nobody_takes_the_rows() {
    let reading = Reading::start(SETUP).await;
    let options = ReadOptions { max_age: Duration::from_secs(1), ..ReadOptions::default() };
    let wanted = vec![reading.wanted("keyless", 1, ReadFrom::Start).await];
    let (reader, reads) = reading.spawn(&reading.postgres.url(), options, wanted).await;
    let holds = async || reading.client.query_one(HOLDS, &[]).await.unwrap().get::<_, i64>(0);
    let deadline = Instant::now() + Duration::from_secs(30);
    for expected in [1, 0] {
        while holds().await != expected {
            assert!(Instant::now() < deadline, "not {expected}");
            sleep(Duration::from_millis(20)).await;
        }
    }
    drop(reads);
    reader.stop().await;
}

/// Up to version 16 a server may remove what a snapshot sees. It tells so those that have taken it, not those that import it.
#[tokio::test(flavor = "multi_thread")]
async fn a_shared_snapshot_is_used_no_longer_than_the_server_keeps_what_it_sees() {
    let options = PostgresOptions::default();
    if options.version() >= 17 {
        return;
    }
    let mut reading = Reading::start_on(options.setting("old_snapshot_threshold", "0"), SETUP).await;
    // Longer than the two seconds that it is used then.
    let options = ReadOptions { bytes_per_second: Some(300_000), ..ReadOptions::default() };
    for table in ["keyed", "keyless"] {
        let wanted = vec![reading.wanted(table, 1, ReadFrom::Start).await];
        reading.read(options.clone(), wanted, async |_, _| {}).await;
    }
    reading.expect_whole("keyed").await;
    let (keyed, keyless) = (reading.told("keyed").await, reading.told("keyless").await);
    assert!(keyed.epoch == 2 && keyed.shared.is_none());
    let refused = keyless.refused.as_ref();
    assert!(refused.is_some_and(|reason| reason.contains("old_snapshot_threshold")), "{refused:?}");
}
