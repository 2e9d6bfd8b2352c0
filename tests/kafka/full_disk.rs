//! What producers are told while there is no room for what they write.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kafka_protocol::ResponseError;
use millrace::log::local::files::{File, Open};
use millrace::log::local::{Files, RealFiles};

use crate::client_topics::{create, delete, topic};
use crate::produce::{batch, made, send, write};
use crate::writable::Writable;

/// A disk that is full when it is told to be.
#[derive(Debug, Default)]
struct Disk(Arc<AtomicBool>);

#[derive(Debug)]
struct OnDisk {
    file: Arc<dyn File>,
    full: Arc<AtomicBool>,
}

fn room(full: &AtomicBool) -> io::Result<()> {
    match full.load(Ordering::Relaxed) {
        true => Err(io::ErrorKind::StorageFull.into()),
        false => Ok(()),
    }
}

impl Files for Disk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        RealFiles.create_dir(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        RealFiles.list(dir)
    }

    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(OnDisk { file: RealFiles.open(path, how)?, full: self.0.clone() }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealFiles.rename(from, to)
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        RealFiles.unlink(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        RealFiles.sync_dir(dir)
    }
}

impl File for OnDisk {
    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }

    fn read_exact_at(&self, into: &mut [u8], position: u64) -> io::Result<()> {
        self.file.read_exact_at(into, position)
    }

    fn write_all_at(&self, bytes: &[u8], position: u64) -> io::Result<()> {
        room(&self.full)?;
        self.file.write_all_at(bytes, position)
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.file.truncate(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }
}

#[tokio::test]
async fn what_finds_no_room_is_refused_and_taken_when_it_is_sent_again() {
    let disk = Disk::default();
    let full = disk.0.clone();
    let broker = Writable::start_on(Arc::new(disk)).await;
    let mut client = broker.server.client().await;
    let topic = made(&broker, &mut client, "orders").await;
    let end = || topic.log.snapshot().range(topic.partitions[0]).unwrap().end.0;
    let mut sent = async |sequence| {
        let answer = send(&mut client, 11, &write(11, &topic, 0, batch((7, 0, sequence), &[1, 2]))).await;
        (answer.error_code, answer.base_offset)
    };
    assert_eq!(sent(0).await, (0, 0));
    full.store(true, Ordering::Relaxed);
    let storage_error = ResponseError::KafkaStorageError.code();
    assert_eq!(sent(2).await, (storage_error, -1));
    assert_eq!(sent(2).await, (storage_error, -1));
    assert_eq!(end(), 2);
    full.store(false, Ordering::Relaxed);
    let out_of_order = ResponseError::OutOfOrderSequenceNumber.code();
    assert_eq!(sent(4).await, (out_of_order, -1), "the one before it is lost");
    assert_eq!(sent(2).await, (0, 2));
    assert_eq!(sent(2).await, (0, 2));
    assert_eq!(end(), 4);
    let broker = broker.restart().await;
    let topic = broker.topics.by_name("orders").unwrap();
    assert_eq!(topic.log.snapshot().range(topic.partitions[0]).unwrap().end.0, 4);
}

#[tokio::test]
async fn topics_that_were_changed_without_room_are_as_asked_once_there_is_some() {
    let disk = Disk::default();
    let full = disk.0.clone();
    let broker = Writable::start_on(Arc::new(disk)).await;
    let mut client = broker.server.client().await;
    made(&broker, &mut client, "old").await;
    full.store(true, Ordering::Relaxed);
    let storage_error = ResponseError::KafkaStorageError.code();
    for _ in 0..2 {
        assert_eq!(delete(&mut client, 5, &["old"]).await[0].0, storage_error);
        assert_eq!(create(&mut client, 5, vec![topic("new", 1, 1)]).await[0].error_code, storage_error);
    }
    full.store(false, Ordering::Relaxed);
    // The first attempts have been made good.
    let unknown = ResponseError::UnknownTopicOrPartition.code();
    assert_eq!(delete(&mut client, 5, &["old"]).await[0].0, unknown);
    assert!(broker.topics.by_name("old").is_none());
    let answer = create(&mut client, 5, vec![topic("new", 1, 1)]).await.remove(0);
    assert!(broker.topics.by_name("new").is_some(), "{answer:?}");
}
