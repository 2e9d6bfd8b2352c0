//! What a log's partitions cost in memory. Alone in its process, since it counts what the whole process allocates.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use millrace::change::Lsn;
use millrace::log::local::{LocalLog, Options};
use millrace::log::record_batch::Codec;
use millrace::log::topics::{Announcer, Topics};
use millrace::log::{LogWriter, Record, SourcePosition};

/// The system's allocator, counting what is in use.
struct Counting;

static IN_USE: AtomicUsize = AtomicUsize::new(0);

// SAFETY: the system's allocator does the work.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        IN_USE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const TOPICS: usize = 5_000;

fn position(n: u64) -> SourcePosition {
    SourcePosition {
        last_commit: Some(Lsn(n)),
        end_lsn: Lsn(n),
        last_record_end: Lsn(n),
        acked_through: Lsn(n),
        timeline: 1,
        system_identifier: 1,
        slot_generation: 1,
    }
}

/// All layers below the front ends: the writer, the log, the snapshot and the directory of topics.
#[tokio::test]
async fn five_thousand_topics_of_one_partition_cost_a_few_megabytes() {
    let directory = tempfile::tempdir().unwrap();
    // The tail cache is bounded by itself.
    let options = Options { tail_cache_bytes: 0, ..Options::new(directory.path(), "test") };
    let (mut writer, reader, _) = LocalLog::open(options).unwrap();
    let topics = Topics::default();
    let mut announcer = Announcer::new(topics.clone(), reader.clone());
    let value = [7; 500];
    let record = Record { timestamp: 1, key: None, value: Some(&value), headers: &[] };
    let mut commit = async |round: u64, count: usize| {
        for n in 0..count {
            let name = format!("shop.public.a_table_with_a_long_name_{n}");
            let partition = writer.create_topic(&name, 1, Codec::Lz4).unwrap()[0];
            writer.append(partition, &record).unwrap();
        }
        writer.boundary();
        writer.commit(position(round)).await.unwrap();
        announcer.announce();
        IN_USE.load(Ordering::Relaxed)
    };
    let empty = commit(1, 1).await;
    let made = commit(2, TOPICS).await;
    let mut last = made;
    for round in 3..7 {
        last = commit(round, TOPICS).await;
    }
    assert_eq!(topics.all().len(), TOPICS);
    let each = |bytes: usize| bytes.saturating_sub(empty) / TOPICS;
    println!("{} bytes a topic with one batch, {} with five", each(made), each(last));
    assert!(each(last) < 2_000, "a topic takes {} bytes", each(last));
}
