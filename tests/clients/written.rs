//! What clients write to a broker that lets them, and read from it again.

use millrace_test_support::{Millrace, MillraceOptions};
use tokio::runtime::Runtime;

use crate::client::{Client, Start, Troupe};
use crate::compatibility::Verdict;
use crate::ledger::Truth;
use crate::{FRANZ_GO, SARAMA, SARAMA_COOPERATIVE};

const CODECS: [&str; 5] = ["none", "gzip", "snappy", "lz4", "zstd"];
/// The programs write the events of so many counters.
const COUNTERS: i64 = 8;
const EVENTS_OF_EACH: i64 = 500;

#[test]
#[ignore = "make test-all"]
fn what_go_clients_write_with_each_codec_is_read_whole_and_in_order() {
    let runtime = Runtime::new().unwrap();
    let data_dir = tempfile::tempdir().unwrap();
    let options = MillraceOptions::serve(data_dir.path()).args(&["--kafka-unsafe-produce"]);
    let millrace = runtime.block_on(Millrace::start(options));
    let truth: Truth = (0..COUNTERS).map(|id| (id, EVENTS_OF_EACH - 1)).collect();

    let writers = [FRANZ_GO, SARAMA, SARAMA_COOPERATIVE, Client::KafkaGo];
    // Another one reads.
    let readers = [SARAMA, Client::KafkaGo, FRANZ_GO, FRANZ_GO];
    for (index, (writer, reader)) in writers.into_iter().zip(readers).enumerate() {
        let _verdict = Verdict::of(writer, "writes with every codec in test mode");
        for codec in CODECS {
            let topic = format!("written-{index}-{codec}");
            writer.write(&millrace.bootstrap(), &topic, codec, EVENTS_OF_EACH);
            let mut troupe = Troupe::default();
            troupe.add(reader.read(&millrace.bootstrap(), &topic, Start::Beginning));
            let what = format!("{reader:?} has read what {writer:?} has written with {codec}");
            troupe.until(&what, |troupe| troupe.ledger.has_all(&truth));
            troupe.ledger.assert_whole(&truth);
        }
    }
}
