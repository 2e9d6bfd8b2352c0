//! Copies of the data directory: what each is good for, as docs/guide-operators.md says.

use std::path::Path;
use std::process::Command;

use millrace_test_support::{Millrace, MillraceOptions, PASSWORD, Postgres, PostgresOptions};
use tokio_postgres::Client;

use crate::stage::{caught_up, gaps, inserted, says};

async fn start() -> (Postgres, Client, tempfile::TempDir) {
    let postgres = Postgres::start(PostgresOptions::default()).await;
    let client = postgres.client().await;
    client.batch_execute("CREATE TABLE t (id bigint PRIMARY KEY)").await.unwrap();
    (postgres, client, tempfile::tempdir().unwrap())
}

async fn insert(client: &Client, first: i64, last: i64) {
    for id in first..=last {
        client.batch_execute(&format!("INSERT INTO t VALUES ({id})")).await.unwrap();
    }
}

/// The saved task has no password.
fn serve(data: &Path) -> MillraceOptions {
    MillraceOptions::serve(data).env("PGPASSWORD", PASSWORD)
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_made_while_stopped_goes_on_elsewhere_without_loss_or_repetition() {
    let (postgres, client, place) = start().await;
    let (here, there) = (place.path().join("here"), place.path().join("there"));
    let mut millrace = Millrace::up(&here, &postgres.url(), &["--task", "shop"]).await;
    insert(&client, 1, 3).await;
    caught_up(&millrace, &client).await;
    millrace.sigterm();
    assert!(millrace.wait().await.success());
    copy(&here, &there);
    insert(&client, 4, 6).await;

    let moved = Millrace::start(serve(&there)).await;
    caught_up(&moved, &client).await;
    assert_eq!(inserted(&moved, "shop").await, [1, 2, 3, 4, 5, 6]);
    assert!(gaps(&moved, "shop").await.is_empty());
}

/// What a snapshot of the file system holds: everything at one instant, here while the process stands still.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_an_instant_goes_on_as_after_a_loss_of_power() {
    let (postgres, client, place) = start().await;
    let (here, there) = (place.path().join("here"), place.path().join("there"));
    let mut millrace = Millrace::up(&here, &postgres.url(), &["--task", "shop"]).await;
    let writer = postgres.client().await;
    let writing = tokio::spawn(async move { insert(&writer, 1, 300).await });
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    let pid = millrace.pid() as libc::pid_t;
    // SAFETY: a plain system call; the process is ours and has not been waited for.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGSTOP) }, 0);
    copy(&here, &there);
    millrace.kill9();
    writing.await.unwrap();

    let restored = Millrace::start(serve(&there)).await;
    caught_up(&restored, &client).await;
    assert_eq!(inserted(&restored, "shop").await, (1..=300).collect::<Vec<i64>>());
    assert!(gaps(&restored, "shop").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_copy_serves_what_it_has_and_says_what_it_lacks() {
    let (postgres, client, place) = start().await;
    let (here, there) = (place.path().join("here"), place.path().join("there"));
    let mut millrace = Millrace::up(&here, &postgres.url(), &["--task", "shop"]).await;
    insert(&client, 1, 2).await;
    caught_up(&millrace, &client).await;
    millrace.sigterm();
    assert!(millrace.wait().await.success());
    copy(&here, &there);
    millrace.restart().await;
    insert(&client, 3, 4).await;
    caught_up(&millrace, &client).await;
    millrace.sigterm();
    assert!(millrace.wait().await.success());

    let mut old = Millrace::spawn(serve(&there));
    let reason = old.wait_state("failed").await;
    says(&reason, &["slot", "--accept-gap"]);
    assert_eq!(inserted(&old, "shop").await, [1, 2]);
    let reported = gaps(&old, "shop").await;
    assert_eq!(reported.len(), 1, "{reported:?}");
    assert_eq!(reported[0]["cause"], "slot_ahead");
    old.sigterm();
    assert!(old.wait().await.success());

    let accepted = Millrace::start(serve(&there).args(&["--accept-gap"])).await;
    insert(&client, 5, 5).await;
    caught_up(&accepted, &client).await;
    assert_eq!(inserted(&accepted, "shop").await, [1, 2, 5]);
}
