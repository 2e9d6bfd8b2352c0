//! The newest librdkafka, through its crate, as a process of its own: this test program, started again.

use std::io::Read;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, Rebalance};
use rdkafka::error::KafkaResult;
use rdkafka::{ClientContext, Message, Offset, TopicPartitionList};
use serde_json::{Map, Value, json};

/// Tells the started process what it is for.
const ROLE: &str = "MILLRACE_TEST_LIBRDKAFKA";

/// `read BOOTSTRAP TOPIC beginning|end|MILLISECONDS` or `group BOOTSTRAP TOPIC GROUP sync|async [SETTING=VALUE ...]`.
pub fn process(role: &[&str]) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "librdkafka::plays_its_role", "--nocapture"]).env(ROLE, role.join(" "));
    command
}

/// Does nothing but in a process that [`process`] has started.
#[test]
fn plays_its_role() {
    let Ok(role) = std::env::var(ROLE) else { return };
    match role.split(' ').collect::<Vec<_>>()[..] {
        ["read", bootstrap, topic, start] => read(bootstrap, topic, start),
        ["group", bootstrap, topic, group, mode, ref more @ ..] => join(bootstrap, topic, group, mode, more),
        _ => panic!("unknown role: {role}"),
    }
}

fn settings(bootstrap: &str) -> ClientConfig {
    let mut settings = ClientConfig::new();
    settings
        .set("bootstrap.servers", bootstrap)
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "earliest")
        .set("reconnect.backoff.max.ms", "500")
        .set("fetch.wait.max.ms", "100");
    settings
}

fn read(bootstrap: &str, topic: &str, start: &str) {
    let wait = Duration::from_secs(30);
    let consumer: BaseConsumer = settings(bootstrap).set("group.id", "none").create().unwrap();
    let metadata = consumer.fetch_metadata(Some(topic), wait).unwrap();
    let mut places = TopicPartitionList::new();
    for partition in metadata.topics()[0].partitions() {
        let place = match start {
            "beginning" => Offset::Beginning,
            "end" => Offset::Offset(consumer.fetch_watermarks(topic, partition.id(), wait).unwrap().1),
            time => Offset::Offset(time.parse().unwrap()),
        };
        places.add_partition_offset(topic, partition.id(), place).unwrap();
    }
    if start.parse::<i64>().is_ok() {
        places = consumer.offsets_for_times(places, wait).unwrap();
    }
    consumer.assign(&places).unwrap();
    say("assigned", &places);
    loop {
        if let Some(Ok(message)) = consumer.poll(Duration::from_millis(200)) {
            say_record(&message);
        }
    }
}

fn join(bootstrap: &str, topic: &str, group: &str, mode: &str, more: &[&str]) {
    static LEAVING: AtomicBool = AtomicBool::new(false);
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        LEAVING.store(true, Ordering::Release);
    });
    let mode = if mode == "sync" { CommitMode::Sync } else { CommitMode::Async };
    let mut settings = settings(bootstrap);
    // Closing the consumer polls, and what that finds is not to count as seen.
    settings.set("group.id", group).set("enable.auto.offset.store", "false");
    for (setting, value) in more.iter().map(|pair| pair.split_once('=').unwrap()) {
        settings.set(setting, value);
    }
    let consumer: BaseConsumer<Speaker> = settings.create_with_context(Speaker).unwrap();
    consumer.subscribe(&[topic]).unwrap();
    let mut uncommitted = 0;
    while !LEAVING.load(Ordering::Acquire) {
        let message = consumer.poll(Duration::from_millis(100));
        if let Some((_, why)) = consumer.client().fatal_error() {
            panic!("{why}");
        }
        let pause = !matches!(message, Some(Ok(_)));
        if let Some(Ok(message)) = message {
            say_record(&message);
            // Refused where the partition has just been taken away: it comes again to whoever has it.
            let _ = consumer.store_offset_from_message(&message);
            uncommitted += 1;
        }
        if uncommitted == 20 || (uncommitted > 0 && pause) {
            // Whether it worked is told by the callback; what was not committed comes again.
            let _ = consumer.commit_consumer_state(mode);
            uncommitted = 0;
        }
    }
    let _ = consumer.commit_consumer_state(CommitMode::Sync);
}

/// Tells what happens to the member.
struct Speaker;

impl ClientContext for Speaker {}

impl ConsumerContext for Speaker {
    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        if let Rebalance::Revoke(_) = rebalance {
            // What was printed so far is committed before another member gets it.
            let _ = consumer.commit_consumer_state(CommitMode::Sync);
        }
    }

    /// What the rebalance names is all, or only what is new or gone: that is the protocol's business.
    fn post_rebalance(&self, consumer: &BaseConsumer<Self>, _: &Rebalance<'_>) {
        say("assigned", &consumer.assignment().unwrap());
    }

    fn commit_callback(&self, result: KafkaResult<()>, offsets: &TopicPartitionList) {
        if result.is_ok() {
            say("committed", offsets);
        }
    }
}

fn say(what: &str, partitions: &TopicPartitionList) {
    let offsets: Map<String, Value> = partitions
        .elements()
        .iter()
        .filter(|e| what == "assigned" || e.offset().to_raw().is_some_and(|o| o >= 0))
        .map(|e| (e.partition().to_string(), json!(e.offset().to_raw().unwrap_or(-1))))
        .collect();
    println!("{}", json!({ what: offsets }));
}

fn say_record(message: &impl Message) {
    let text = |bytes: Option<&[u8]>| bytes.map(|b| String::from_utf8_lossy(b).into_owned());
    println!(
        "{}",
        json!({
            "partition": message.partition(),
            "offset": message.offset(),
            "ts": message.timestamp().to_millis(),
            "key": text(message.key()),
            "payload": text(message.payload()),
        })
    );
}
