use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use rusqlite::OpenFlags;

use super::*;

const DAY: i64 = 24 * 3600 * 1000;

fn entry(topic: &str, partition: i32, offset: i64, commit_time: i64) -> OffsetEntry {
    OffsetEntry {
        topic: topic.into(),
        partition,
        committed: Committed {
            offset,
            leader_epoch: 7,
            metadata: "wherever".into(),
            commit_time,
            topic_id: Some(TopicId(u128::MAX - 1)),
        },
    }
}

async fn commit(store: &OffsetStore, group: &str, entries: Vec<OffsetEntry>) -> Result<(), OffsetError> {
    store.permit().await?.commit(group, true, entries).await
}

fn open(dir: &Path) -> (DataDir, OffsetStore) {
    let data = DataDir::open(dir).unwrap();
    let store = OffsetStore::open_at(&data, 1_000_000, 0).unwrap();
    (data, store)
}

#[tokio::test]
async fn what_was_committed_is_there_after_reopening_whole() {
    let dir = tempfile::tempdir().unwrap();
    let (data, store) = open(dir.path());
    commit(&store, "g", vec![entry("a", 0, 5, 1), entry("b", 3, 9, 1)]).await.unwrap();
    commit(&store, "g", vec![entry("a", 0, 6, 2)]).await.unwrap();
    assert_eq!(store.committed("g", "a", 0), Some(entry("a", 0, 6, 2).committed));
    let before = store.all_committed("g");
    drop((store, data));
    let (_data, store) = open(dir.path());
    assert_eq!(store.all_committed("g"), before);
    assert_eq!(before, [entry("a", 0, 6, 2), entry("b", 3, 9, 1)]);
    assert_eq!(store.committed("g", "a", 1), None);
    assert_eq!(store.committed("h", "a", 0), None);
}

#[tokio::test]
async fn an_answered_commit_is_in_the_file_for_others_to_see() {
    let dir = tempfile::tempdir().unwrap();
    let (_data, store) = open(dir.path());
    commit(&store, "g", vec![entry("a", 0, 42, 1)]).await.unwrap();
    let reader =
        Connection::open_with_flags(dir.path().join("offsets.db"), OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let found: i64 =
        reader.query_row("SELECT committed_offset FROM committed_offsets", [], |row| row.get(0)).unwrap();
    assert_eq!(found, 42);
    let mode: String = reader.pragma_query_value(None, "journal_mode", |row| row.get(0)).unwrap();
    assert_eq!(mode, "wal");
}

#[tokio::test]
async fn the_last_of_several_commits_in_one_transaction_wins() {
    let dir = tempfile::tempdir().unwrap();
    let (data, store) = open(dir.path());
    let mut writes = Vec::new();
    for offset in 0..500 {
        writes.push(store.permit().await.unwrap().commit("g", true, vec![entry("a", 0, offset, offset)]));
    }
    writes.push(store.permit().await.unwrap().delete_partitions("g", vec![("b".into(), 0)]));
    writes.push(store.permit().await.unwrap().commit("g", true, vec![entry("b", 0, 1, 1)]));
    for write in writes {
        write.await.unwrap();
    }
    drop((store, data));
    let (_data, store) = open(dir.path());
    assert_eq!(store.all_committed("g"), [entry("a", 0, 499, 499), entry("b", 0, 1, 1)]);
}

#[tokio::test]
async fn deleted_groups_and_partitions_stay_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let (data, store) = open(dir.path());
    for group in ["g", "h"] {
        commit(&store, group, vec![entry("a", 0, 1, 1), entry("a", 1, 1, 1)]).await.unwrap();
    }
    store.permit().await.unwrap().delete_group("g").await.unwrap();
    store.permit().await.unwrap().delete_partitions("h", vec![("a".into(), 1)]).await.unwrap();
    for _ in 0..2 {
        assert_eq!(store.groups(), ["h".into()]);
        assert_eq!(store.all_committed("h"), [entry("a", 0, 1, 1)]);
    }
    drop((store, data));
    let (_data, store) = open(dir.path());
    assert_eq!(store.groups(), ["h".into()]);
    store.permit().await.unwrap().delete_partitions("h", vec![("a".into(), 0)]).await.unwrap();
    assert!(!store.has_group("h"));
}

#[tokio::test]
async fn offsets_expire_only_when_their_group_has_been_empty_for_long() {
    let dir = tempfile::tempdir().unwrap();
    let (data, store) = open(dir.path());
    let retention = Duration::from_secs(7 * 24 * 3600);
    let expire =
        async |store: &OffsetStore, now| store.permit().await.unwrap().expire(now, retention).await.unwrap();
    commit(&store, "busy", vec![entry("a", 0, 1, 0)]).await.unwrap();
    commit(&store, "left", vec![entry("a", 0, 1, 0)]).await.unwrap();
    // Without members: each offset has its own time.
    let alone = vec![entry("a", 0, 1, 0), entry("a", 1, 1, 5 * DAY)];
    store.permit().await.unwrap().commit("alone", false, alone).await.unwrap();
    let emptied = vec![("left".into(), Some(3 * DAY)), ("unknown".into(), Some(1))];
    store.permit().await.unwrap().set_empty_since(emptied).await.unwrap();

    expire(&store, 8 * DAY).await;
    assert!(store.has_group("busy") && store.has_group("left"));
    assert_eq!(store.all_committed("alone"), [entry("a", 1, 1, 5 * DAY)]);
    expire(&store, 10 * DAY).await;
    assert!(store.has_group("busy") && !store.has_group("left"));

    // A restart takes all members away.
    drop((store, data));
    let data = DataDir::open(dir.path()).unwrap();
    let store = OffsetStore::open_at(&data, 10, 20 * DAY).unwrap();
    expire(&store, 26 * DAY).await;
    assert!(store.has_group("busy"));
    expire(&store, 27 * DAY).await;
    assert!(store.groups().is_empty());
}

#[tokio::test]
async fn a_commit_that_cannot_be_written_is_refused_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (_data, store) = open(dir.path());
    commit(&store, "g", vec![entry("a", 0, 1, 1)]).await.unwrap();
    let other = Connection::open(dir.path().join("offsets.db")).unwrap();
    let breaks = "CREATE TRIGGER full BEFORE INSERT ON committed_offsets WHEN new.committed_offset = 13
                  BEGIN SELECT RAISE(ABORT, 'no'); END";
    other.execute_batch(breaks).unwrap();
    let refused = commit(&store, "g", vec![entry("a", 1, 1, 1), entry("a", 0, 13, 2)]).await;
    assert!(matches!(refused, Err(OffsetError::Database { .. })), "{refused:?}");
    assert_eq!(store.all_committed("g"), [entry("a", 0, 1, 1)]);
    // And the next one goes through.
    commit(&store, "g", vec![entry("a", 0, 14, 2)]).await.unwrap();
    assert_eq!(store.committed("g", "a", 0), Some(entry("a", 0, 14, 2).committed));
}

#[tokio::test]
async fn a_full_disk_is_said_to_be_one() {
    let dir = tempfile::tempdir().unwrap();
    let data = DataDir::open(dir.path()).unwrap();
    let db = sqlite::open(&dir.path().join("offsets.db"), MIGRATIONS).unwrap();
    // SQLite's own limit gives the error that a full disk gives.
    db.pragma_update_and_check(None, "max_page_count", 8, |_| Ok(())).unwrap();
    let mut writer = Writer { path: "offsets.db".into(), db, memory: Arc::default() };
    let (answer, _write) = oneshot::channel();
    let entries = (0..10_000).map(|partition| entry("a", partition, 1, 1)).collect();
    let job = Job { change: Change::Commit { group: "g".into(), has_members: true, entries }, answer };
    let refused = writer.write(&[job]);
    assert!(matches!(refused, Err(OffsetError::NoSpace { .. })), "{refused:?}");
    assert!(writer.memory.read().unwrap().groups.is_empty());
    drop((writer, data));
}

#[tokio::test]
async fn what_all_groups_may_have_committed_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let data = DataDir::open(dir.path()).unwrap();
    let store = OffsetStore::open_at(&data, 1, 0).unwrap();
    assert!(store.has_room_for("g", "a", 0, 100));
    commit(&store, "g", vec![entry("a", 0, 1, 1)]).await.unwrap();
    assert!(store.has_room_for("g", "a", 0, 100));
    assert!(!store.has_room_for("g", "a", 1, 0));
    assert!(!store.has_room_for("g", "a", 0, MAX_METADATA_BYTES));
    assert_eq!(store.read(|memory| memory.metadata_bytes), "wherever".len());
    store.permit().await.unwrap().delete_group("g").await.unwrap();
    assert_eq!(store.read(|memory| (memory.entries, memory.metadata_bytes)), (0, 0));
}

#[tokio::test]
async fn a_closed_store_refuses_and_has_written_what_it_took() {
    let dir = tempfile::tempdir().unwrap();
    let (_data, store) = open(dir.path());
    let write = store.permit().await.unwrap().commit("g", true, vec![entry("a", 0, 1, 1)]);
    store.close().await;
    write.await.unwrap();
    assert!(matches!(commit(&store, "g", vec![entry("a", 0, 2, 1)]).await, Err(OffsetError::Stopped)));
    store.close().await;
}

/// The child of the test below: commits rising offsets and prints each that was answered, until it is killed.
#[test]
fn child_that_commits_until_it_is_killed() {
    let Some(dir) = std::env::var_os("MILLRACE_TEST_COMMIT_FOREVER") else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let (_data, store) = open(Path::new(&dir));
        let first = store.committed("g", "a", 0).map_or(0, |committed| committed.offset);
        for offset in first + 1.. {
            commit(&store, "g", vec![entry("a", 0, offset, 1), entry("a", 1, offset, 1)]).await.unwrap();
            println!("answered {offset}");
        }
    });
}

#[test]
fn every_answered_commit_survives_a_kill_and_none_is_torn() {
    let dir = tempfile::tempdir().unwrap();
    let mut answered = 0;
    for round in 0..5 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture", "state::offsets::tests::child_that_commits_until_it_is_killed"])
            .env("MILLRACE_TEST_COMMIT_FOREVER", dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut seen = 0;
        for line in lines {
            // The harness prints the test's name in front of the first.
            if let Some((_, offset)) = line.unwrap().rsplit_once("answered ") {
                answered = offset.parse::<i64>().unwrap();
                seen += 1;
                if seen == 20 + 7 * round {
                    // What is still in the pipe was answered too, and is read until the child is gone.
                    child.kill().unwrap();
                }
            }
        }
        child.wait().unwrap();
        let (_data, store) = open(dir.path());
        let kept = [0, 1].map(|partition| store.committed("g", "a", partition).unwrap().offset);
        assert!(kept[0] >= answered, "{answered} was answered, {} was kept", kept[0]);
        assert_eq!(kept[0], kept[1], "half a commit");
    }
}
