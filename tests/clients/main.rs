//! Clients as their users run them, each through the same story: `make test-clients`, and with those that are ignored
//! there, `make test-clients-all`.
//!
//! A table of counters is updated in transactions of several rows, so that every key's events are numbered 0, 1, 2 …
//! and PostgreSQL itself knows how many there must be. Clients are processes of their own, so that they can crash; they
//! print what they see, and the [`ledger`] judges it: all of it arrives, in order per key, always the same at one
//! offset, and repeated only where the last commit explains it.
//!
//! kcat (Debian's librdkafka 2.0), Java (its two newest major releases), the newest librdkafka that its crate bundles,
//! Python's confluent-kafka, kafka-python and aiokafka, Go's franz-go, sarama and kafka-go, Node's kafkajs and
//! @platformatic/kafka; and the examples that subscribe over gRPC, among themselves and in groups with some of these.

#![allow(clippy::unwrap_used, reason = "what fails here is the test")]

mod client;
mod compatibility;
mod connect;
mod console;
mod group;
mod ledger;
mod librdkafka;
mod migration;
mod stage;
mod static_members;
mod written;

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use client::{Client, Commit, Protocol, Start, Troupe, java, java_with, kcat, node, python};
use compatibility::Verdict;
use group::Group;
use ledger::Ledger;
use stage::{PARTITIONS, Stage, TOPIC};

const JAVA: Client = Client::Java(Protocol::Classic);
const JAVA_COOPERATIVE: Client = Client::Java(Protocol::Cooperative);
const PREVIOUS_JAVA: Client = Client::PreviousJava(Protocol::Classic);
const LIBRDKAFKA: Client = Client::Librdkafka(Protocol::Classic);
const CONFLUENT_KAFKA: Client = Client::ConfluentKafka(Protocol::Classic);
/// By its default.
const FRANZ_GO: Client = Client::FranzGo(Protocol::Cooperative);
const FRANZ_GO_CONSUMER: Client = Client::FranzGo(Protocol::Consumer);
const PLATFORMATIC: Client = Client::Platformatic(Protocol::Cooperative);
const SARAMA: Client = Client::Sarama(Protocol::Classic);
const SARAMA_COOPERATIVE: Client = Client::Sarama(Protocol::Cooperative);

const README: &str = include_str!("../../README.md");
const GUIDE: &str = include_str!("../../docs/guide-consumers.md");
/// Where their programs look for the broker.
const DOCUMENTED_ADDRESS: &str = "127.0.0.1:9092";

#[test]
fn kcat_lists_and_reads_from_the_beginning_the_end_and_a_time() {
    lists_and_reads(Client::Kcat);
}

#[test]
fn java_lists_and_reads_from_the_beginning_the_end_and_a_time() {
    lists_and_reads(JAVA);
}

#[test]
fn java_of_the_previous_release_lists_and_reads_from_the_beginning_the_end_and_a_time() {
    lists_and_reads(PREVIOUS_JAVA);
}

#[test]
fn librdkafka_lists_and_reads_from_the_beginning_the_end_and_a_time() {
    lists_and_reads(LIBRDKAFKA);
}

#[test]
fn confluent_kafka_lists_and_reads_from_the_beginning_the_end_and_a_time() {
    lists_and_reads(CONFLUENT_KAFKA);
}

#[test]
fn kafka_python_lists_and_reads_from_the_beginning_the_end_and_a_time() {
    lists_and_reads(Client::KafkaPython);
}

#[test]
#[ignore = "make test-all"]
fn aiokafka_lists_and_reads_from_the_beginning_the_end_and_a_time() {
    lists_and_reads(Client::Aiokafka);
}

#[test]
fn franz_go_lists_and_reads_from_the_beginning_the_end_and_a_time() {
    lists_and_reads(FRANZ_GO);
}

#[test]
#[ignore = "make test-all"]
fn sarama_lists_and_reads_from_the_beginning_the_end_and_a_time() {
    lists_and_reads(SARAMA);
}

#[test]
#[ignore = "make test-all"]
fn sarama_with_the_newest_versions_lists_and_reads_from_the_beginning_the_end_and_a_time() {
    lists_and_reads(SARAMA_COOPERATIVE);
}

#[test]
#[ignore = "make test-all"]
fn kafka_go_lists_and_reads_from_the_beginning_the_end_and_a_time() {
    lists_and_reads(Client::KafkaGo);
}

#[test]
fn kafkajs_lists_and_reads_from_the_beginning_the_end_and_a_time() {
    lists_and_reads(Client::KafkaJs);
}

#[test]
#[ignore = "make test-all"]
fn platformatic_kafka_lists_and_reads_from_the_beginning_the_end_and_a_time() {
    lists_and_reads(PLATFORMATIC);
}

/// kcat commits by itself, in the background.
#[test]
fn a_group_of_kcats_loses_nothing_through_crashes_on_both_sides() {
    a_group_loses_nothing(&[Client::Kcat], Commit::Async);
}

#[test]
fn a_group_of_java_clients_that_commit_synchronously_loses_nothing_through_crashes_on_both_sides() {
    a_group_loses_nothing(&[JAVA], Commit::Sync);
}

#[test]
fn a_group_of_java_clients_that_commit_asynchronously_loses_nothing_through_crashes_on_both_sides() {
    a_group_loses_nothing(&[JAVA], Commit::Async);
}

#[test]
fn a_group_of_librdkafka_clients_that_commit_synchronously_loses_nothing_through_crashes_on_both_sides() {
    a_group_loses_nothing(&[LIBRDKAFKA], Commit::Sync);
}

#[test]
fn a_group_of_librdkafka_clients_that_commit_asynchronously_loses_nothing_through_crashes_on_both_sides() {
    a_group_loses_nothing(&[LIBRDKAFKA], Commit::Async);
}

#[test]
fn a_group_of_confluent_kafka_clients_that_commit_synchronously_loses_nothing_through_crashes_on_both_sides()
{
    a_group_loses_nothing(&[CONFLUENT_KAFKA], Commit::Sync);
}

#[test]
fn a_group_of_confluent_kafka_clients_that_commit_asynchronously_loses_nothing_through_crashes_on_both_sides()
{
    a_group_loses_nothing(&[CONFLUENT_KAFKA], Commit::Async);
}

#[test]
fn a_group_of_kafka_python_clients_that_commit_synchronously_loses_nothing_through_crashes_on_both_sides() {
    a_group_loses_nothing(&[Client::KafkaPython], Commit::Sync);
}

#[test]
fn a_group_of_kafka_python_clients_that_commit_asynchronously_loses_nothing_through_crashes_on_both_sides() {
    a_group_loses_nothing(&[Client::KafkaPython], Commit::Async);
}

#[test]
fn a_group_of_cooperative_java_clients_loses_nothing_through_crashes_on_both_sides() {
    a_group_loses_nothing(&[JAVA_COOPERATIVE], Commit::Sync);
}

#[test]
fn a_group_of_java_clients_of_the_previous_release_loses_nothing_through_crashes_on_both_sides() {
    a_group_loses_nothing(&[PREVIOUS_JAVA], Commit::Sync);
}

#[test]
fn a_group_of_cooperative_java_clients_of_the_previous_release_loses_nothing_through_crashes_on_both_sides() {
    a_group_loses_nothing(&[Client::PreviousJava(Protocol::Cooperative)], Commit::Async);
}

/// While the release is changed in one program after the other.
#[test]
fn a_group_of_both_releases_of_java_clients_loses_nothing_through_crashes_on_both_sides() {
    a_group_loses_nothing(&[JAVA, PREVIOUS_JAVA], Commit::Sync);
}

#[test]
fn a_group_of_cooperative_librdkafka_clients_loses_nothing_through_crashes_on_both_sides() {
    a_group_loses_nothing(&[Client::Librdkafka(Protocol::Cooperative)], Commit::Sync);
}

#[test]
#[ignore = "make test-all"]
fn a_group_of_aiokafka_clients_that_commit_synchronously_loses_nothing_through_crashes_on_both_sides() {
    a_group_loses_nothing(&[Client::Aiokafka], Commit::Sync);
}

#[test]
#[ignore = "make test-all"]
fn a_group_of_aiokafka_clients_that_commit_asynchronously_loses_nothing_through_crashes_on_both_sides() {
    a_group_loses_nothing(&[Client::Aiokafka], Commit::Async);
}

#[test]
fn a_group_of_franz_go_clients_that_commit_synchronously_loses_nothing_through_crashes_on_both_sides() {
    a_group_loses_nothing(&[FRANZ_GO], Commit::Sync);
}

#[test]
fn a_group_of_franz_go_clients_that_commit_asynchronously_loses_nothing_through_crashes_on_both_sides() {
    a_group_loses_nothing(&[FRANZ_GO], Commit::Async);
}

#[test]
fn a_group_of_kafkajs_clients_that_commit_synchronously_loses_nothing_through_crashes_on_both_sides() {
    a_group_loses_nothing(&[Client::KafkaJs], Commit::Sync);
}

#[test]
fn a_group_of_kafkajs_clients_that_commit_asynchronously_loses_nothing_through_crashes_on_both_sides() {
    a_group_loses_nothing(&[Client::KafkaJs], Commit::Async);
}

#[test]
#[ignore = "make test-all"]
fn a_group_of_sarama_clients_that_commit_synchronously_loses_nothing_through_crashes_on_both_sides() {
    a_group_loses_nothing(&[SARAMA], Commit::Sync);
}

#[test]
#[ignore = "make test-all"]
fn a_group_of_sarama_clients_that_commit_asynchronously_loses_nothing_through_crashes_on_both_sides() {
    a_group_loses_nothing(&[SARAMA], Commit::Async);
}

#[test]
#[ignore = "make test-all"]
fn a_group_of_kafka_go_clients_that_commit_synchronously_loses_nothing_through_crashes_on_both_sides() {
    a_group_loses_nothing(&[Client::KafkaGo], Commit::Sync);
}

#[test]
#[ignore = "make test-all"]
fn a_group_of_kafka_go_clients_that_commit_asynchronously_loses_nothing_through_crashes_on_both_sides() {
    a_group_loses_nothing(&[Client::KafkaGo], Commit::Async);
}

#[test]
#[ignore = "make test-all"]
fn a_group_of_cooperative_sarama_clients_loses_nothing_through_crashes_on_both_sides() {
    a_group_loses_nothing(&[SARAMA_COOPERATIVE], Commit::Sync);
}

/// franz-go leads: the assignor of @platformatic/kafka leaves the third of three members without any of four partitions,
/// with Apache Kafka too.
#[test]
#[ignore = "make test-all"]
fn a_platformatic_kafka_client_that_crashes_among_franz_go_clients_loses_nothing() {
    a_group_loses_nothing(&[FRANZ_GO, PLATFORMATIC], Commit::Async);
}

#[test]
fn a_group_of_java_clients_by_the_consumer_protocol_loses_nothing_through_crashes_on_both_sides() {
    a_group_loses_nothing(&[Client::Java(Protocol::Consumer)], Commit::Sync);
}

#[test]
fn a_group_of_java_clients_that_subscribe_by_pattern_loses_nothing_through_crashes_on_both_sides() {
    a_group_loses_nothing(&[Client::Java(Protocol::ConsumerByPattern)], Commit::Async);
}

/// It was a preview in that release.
#[test]
#[ignore = "make test-all"]
fn a_group_of_previous_java_clients_by_the_consumer_protocol_loses_nothing_through_crashes_on_both_sides() {
    a_group_loses_nothing(&[Client::PreviousJava(Protocol::Consumer)], Commit::Sync);
}

#[test]
fn a_group_of_librdkafka_clients_by_the_consumer_protocol_loses_nothing_through_crashes_on_both_sides() {
    a_group_loses_nothing(&[Client::Librdkafka(Protocol::Consumer)], Commit::Sync);
}

#[test]
fn a_group_of_librdkafka_clients_that_subscribe_by_pattern_loses_nothing_through_crashes_on_both_sides() {
    a_group_loses_nothing(&[Client::Librdkafka(Protocol::ConsumerByPattern)], Commit::Async);
}

#[test]
fn a_group_of_confluent_kafka_clients_by_the_consumer_protocol_loses_nothing_through_crashes_on_both_sides() {
    a_group_loses_nothing(&[Client::ConfluentKafka(Protocol::Consumer)], Commit::Sync);
}

#[test]
fn a_group_of_java_and_librdkafka_clients_by_the_consumer_protocol_loses_nothing_through_crashes_on_both_sides()
 {
    let protocol = Protocol::Consumer;
    a_group_loses_nothing(&[Client::Java(protocol), Client::Librdkafka(protocol)], Commit::Sync);
}

#[test]
fn a_group_of_franz_go_clients_by_the_consumer_protocol_loses_nothing_through_crashes_on_both_sides() {
    a_group_loses_nothing(&[FRANZ_GO_CONSUMER], Commit::Sync);
}

#[test]
#[ignore = "make test-all"]
fn a_group_of_franz_go_clients_by_both_protocols_loses_nothing_through_crashes_on_both_sides() {
    a_group_loses_nothing(&[FRANZ_GO, FRANZ_GO_CONSUMER], Commit::Async);
}

#[test]
#[ignore = "make test-all"]
fn a_group_of_platformatic_kafka_clients_by_the_consumer_protocol_loses_nothing_through_crashes_on_both_sides()
 {
    a_group_loses_nothing(&[Client::Platformatic(Protocol::Consumer)], Commit::Async);
}

/// The example, which acknowledges each message.
#[test]
fn a_group_of_subscribers_in_python_loses_nothing_through_crashes_on_both_sides() {
    a_group_loses_nothing(&[Client::PythonSubscriber], Commit::Async);
}

#[test]
fn a_group_of_subscribers_in_go_loses_nothing_through_crashes_on_both_sides() {
    a_group_loses_nothing(&[Client::GoSubscriber], Commit::Async);
}

/// The second member is the one that crashes.
#[test]
fn a_subscriber_that_crashes_among_cooperative_java_clients_loses_nothing() {
    a_group_loses_nothing(&[JAVA_COOPERATIVE, Client::PythonSubscriber], Commit::Sync);
}

#[test]
fn a_cooperative_java_client_that_crashes_among_subscribers_loses_nothing() {
    a_group_loses_nothing(&[Client::GoSubscriber, JAVA_COOPERATIVE], Commit::Sync);
}

#[test]
fn a_subscriber_that_crashes_among_java_clients_by_the_consumer_protocol_loses_nothing() {
    a_group_loses_nothing(&[Client::Java(Protocol::Consumer), Client::PythonSubscriber], Commit::Sync);
}

/// By `range`: the subscribers give up everything in each rebalance, as the clients do.
#[test]
fn a_group_of_librdkafka_clients_and_subscribers_loses_nothing_through_crashes_on_both_sides() {
    a_group_loses_nothing(&[LIBRDKAFKA, Client::GoSubscriber], Commit::Sync);
}

#[test]
fn the_programs_of_the_readme_show_changes() {
    let stage = Stage::start();
    stage.write(3);

    let console = java_with(&["console"])
        .arg("org.apache.kafka.tools.consumer.ConsoleConsumer")
        .args(["--bootstrap-server", &stage.bootstrap(), "--topic", TOPIC])
        .args(["--from-beginning", "--max-messages", "5", "--timeout-ms", "30000"])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&console.stdout).lines().count(), 5, "{console:?}");

    shows_changes(&stage, java().args(["FirstMinute", &stage.bootstrap(), TOPIC]));

    let kcat = kcat()
        .args(["-C", "-b", &stage.bootstrap(), "-t", TOPIC, "-o", "beginning", "-f", "%k %s\n", "-c", "5"])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&kcat.stdout).lines().count(), 5, "{kcat:?}");
}

#[test]
fn the_python_program_of_the_readme_shows_changes() {
    let stage = Stage::start();
    shows_changes(&stage, python().args(["-c", &program(README, "python", &stage)]));
}

#[test]
fn the_kafkajs_program_of_the_guide_shows_changes() {
    let stage = Stage::start();
    shows_changes(&stage, node().args(["--input-type=module", "-e", &program(GUIDE, "js", &stage)]));
}

/// The program that a page of documentation has in a language, for the broker here.
fn program(page: &str, language: &str, stage: &Stage) -> String {
    let (_, rest) = page.split_once(&format!("```{language}\n")).unwrap();
    let (program, _) = rest.split_once("```").unwrap();
    assert!(program.contains(DOCUMENTED_ADDRESS), "{program}");
    program.replace(DOCUMENTED_ADDRESS, &stage.bootstrap())
}

fn shows_changes(stage: &Stage, program: &mut Command) {
    stage.write(3);
    let mut troupe = Troupe::default();
    troupe.add_program(program);
    troupe.until("the program has printed five changes", |troupe| {
        troupe.member(0).last_words().iter().filter(|line| line.contains(r#""op":"#)).count() >= 5
    });
}

fn lists_and_reads(client: Client) {
    let _verdict = Verdict::of(client, "listing, reading from the beginning, the end and a time");
    let stage = Stage::start();
    stage.write(20);
    assert_eq!(client.list(&stage.bootstrap()).get(TOPIC), Some(&PARTITIONS), "{client:?} lists the topic");

    let beginning = read(client, &stage, Start::Beginning, |_| {});
    beginning.assert_whole(&stage.truth());

    // Commit times have a resolution of a millisecond on their way; keep the two batches apart.
    std::thread::sleep(Duration::from_millis(20));
    let end = read(client, &stage, Start::End, |stage| stage.write(10));
    let all = read(client, &stage, Start::Beginning, |_| {});
    all.assert_whole(&stage.truth());
    end.assert_same(all.records().filter(|r| beginning.get(r).is_none()));

    let first_new = end.records().map(|r| r.timestamp).min().unwrap();
    let since = read(client, &stage, Start::Time(first_new), |_| {});
    let mut starts = BTreeMap::new();
    for record in all.records().filter(|r| r.timestamp >= first_new) {
        starts.entry(record.partition).or_insert(record.offset);
    }
    since.assert_same(all.records().filter(|r| starts.get(&r.partition).is_some_and(|s| r.offset >= *s)));
}

/// Reads with a consumer of no group until it has seen the newest event of every counter; `then` happens once it has
/// found its place.
fn read(client: Client, stage: &Stage, start: Start, then: impl FnOnce(&Stage)) -> Ledger {
    let mut troupe = Troupe::default();
    troupe.add(client.read(&stage.bootstrap(), TOPIC, start));
    if start == Start::End {
        troupe.until("the reader has found the end", |t| t.member(0).knows_its_place());
    }
    then(stage);
    let truth = stage.truth();
    troupe.until("the reader has seen the newest events", |t| t.ledger.has_newest(&truth));
    troupe.ledger
}

fn a_group_loses_nothing(clients: &[Client], commit: Commit) {
    let _verdicts = Verdict::of_group(clients, commit);
    let mut stage = Stage::start();
    stage.write(40);
    let mut group = Group::new(clients, commit);

    // Two share the work, then three; nobody was lost, so nothing comes twice.
    let _first = group.join(&stage);
    let second = group.join(&stage);
    group.settle(&stage);
    stage.write(20);
    group.settle(&stage);
    group.join(&stage);
    stage.write(20);
    group.settle(&stage);
    stage.write(20);
    group.settle(&stage);
    group.assert_repeats_only_beyond(&BTreeMap::new());

    // One dies. The others take over from its last commit.
    let floor = group.committed(&stage);
    stage.write(20);
    group.crash(second);
    let floor = group.raise_by_answered_commits(floor);
    stage.write(20);
    group.settle(&stage);
    group.assert_repeats_only_beyond(&floor);

    // The broker dies while they work.
    stage.write(20);
    let floor = group.committed(&stage);
    stage.kill_broker();
    let floor = group.raise_by_answered_commits(floor);
    stage.write(20);
    stage.restart_broker();
    group.assert_not_below(&stage, &floor);
    stage.write(20);
    group.settle(&stage);
    group.assert_repeats_only_beyond(&floor);

    // All leave properly, and somebody new goes on exactly there.
    group.leave();
    // Members may have worked on after the restart before they rejoined; what they then read again came late.
    group.assert_repeats_only_beyond(&floor);
    let floor = group.committed(&stage);
    stage.write(20);
    group.join(&stage);
    group.settle(&stage);
    group.assert_repeats_only_beyond(&floor);
    group.assert_newest_member_saw_only(20 * stage::ROWS_A_TRANSACTION);
}
