//! What was measured beside Apache Kafka, as a table or as one JSON object, and what it should have been.

use std::fmt;

use serde::Serialize;

use super::super::backlog::Backlog;
use super::super::report::{Fetched, Measured, verdict};
use crate::bench::BenchError;
use crate::bench::process::Process;
use crate::bench::report::{median, rounded};

/// The least ratio of rates, ours ÷ Kafka's.
const RATIO: f64 = 0.95;
/// The most CPU time, ours ÷ Kafka's.
const CPU: f64 = 0.5;

/// A measurement of several rounds, where `bare` is Kafka.
#[derive(Debug)]
pub(in super::super) struct Report {
    pub(super) backlog: Backlog,
    pub(super) rounds: Vec<Measured>,
    pub(super) kafka: Memory,
    pub(super) ours: Memory,
}

/// What a broker occupies after the last round, in 10^6 bytes.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Memory {
    resident_mb: f64,
    peak_mb: f64,
    proportional_mb: f64,
}

#[derive(Debug, Serialize)]
struct Summary {
    client: &'static str,
    records: u64,
    batches: u64,
    stored_mb: f64,
    rounds: Vec<Round>,
    ratio: f64,
    cpu_ratio: f64,
    ours: Figures,
    kafka: Figures,
    fast_enough: bool,
    cheap_enough: bool,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct Round {
    kafka_records_per_s: f64,
    ours_records_per_s: f64,
    ratio: f64,
}

/// A broker's medians; its CPU time is that of all rounds together, because one round is few ticks of the clock that
/// counts it.
#[derive(Debug, Serialize)]
struct Figures {
    records_per_s: f64,
    mb_per_s: f64,
    cpu_s_per_gb: f64,
    #[serde(flatten)]
    memory: Memory,
}

impl Memory {
    pub(super) fn of(process: &Process) -> Result<Self, BenchError> {
        let usage = process.usage()?;
        let megabytes = |bytes: u64| rounded(bytes as f64 / 1e6);
        Ok(Memory {
            resident_mb: megabytes(usage.memory),
            peak_mb: megabytes(usage.peak_memory),
            proportional_mb: megabytes(process.proportional_memory()?),
        })
    }
}

impl Report {
    /// One JSON object.
    pub(in super::super) fn json(&self) -> String {
        serde_json::to_string(&self.summary()).unwrap_or_default()
    }

    fn summary(&self) -> Summary {
        let records = self.backlog.records as f64;
        let round = |round: &Measured| Round {
            kafka_records_per_s: (records / round.bare.seconds).round(),
            ours_records_per_s: (records / round.ours.seconds).round(),
            ratio: rounded(round.bare.seconds / round.ours.seconds),
        };
        let kafka = self.figures(self.kafka, |round| round.bare);
        let ours = self.figures(self.ours, |round| round.ours);
        let ratio = median(self.rounds.iter().map(|round| round.bare.seconds / round.ours.seconds));
        let cpu_ratio = ours.cpu_s_per_gb / kafka.cpu_s_per_gb;
        Summary {
            client: "librdkafka",
            records: self.backlog.records,
            batches: self.backlog.batches,
            stored_mb: rounded(self.backlog.bytes as f64 / 1e6),
            rounds: self.rounds.iter().map(round).collect(),
            ratio: rounded(ratio),
            cpu_ratio: rounded(cpu_ratio),
            fast_enough: ratio >= RATIO,
            cheap_enough: cpu_ratio <= CPU,
            ours,
            kafka,
        }
    }

    fn figures(&self, memory: Memory, side: impl Fn(&Measured) -> Fetched) -> Figures {
        let of_each = |figure: &dyn Fn(Fetched) -> f64| {
            rounded(median(self.rounds.iter().map(|round| figure(side(round)))))
        };
        let cpu: f64 = self.rounds.iter().map(|round| side(round).cpu.as_secs_f64()).sum();
        let gigabytes = self.backlog.bytes as f64 * self.rounds.len() as f64 / 1e9;
        Figures {
            records_per_s: of_each(&|read| (self.backlog.records as f64 / read.seconds).round()),
            mb_per_s: of_each(&|read| read.bytes as f64 / 1e6 / read.seconds),
            cpu_s_per_gb: rounded(cpu / gigabytes),
            memory,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Summary { client, records, batches, stored_mb, rounds, ratio, cpu_ratio, ours, kafka, .. } =
            self.summary();
        writeln!(f, "{client}: {records} records in {batches} batches of {stored_mb:.1} MB\n")?;
        writeln!(f, "{:>7} {:>16} {:>16} {:>8}", "round", "Kafka records/s", "ours records/s", "ratio")?;
        for (number, Round { kafka_records_per_s, ours_records_per_s, ratio }) in rounds.iter().enumerate() {
            let number = number + 1;
            writeln!(f, "{number:>7} {kafka_records_per_s:>16.0} {ours_records_per_s:>16.0} {ratio:>8.3}")?;
        }
        writeln!(f, "\n{:<32} {:>12} {:>12}", "", "Kafka", "ours")?;
        for (name, kafka, ours) in [
            ("records/s", kafka.records_per_s, ours.records_per_s),
            ("MB/s of keys and values", kafka.mb_per_s, ours.mb_per_s),
            ("CPU s per GB sent", kafka.cpu_s_per_gb, ours.cpu_s_per_gb),
            ("resident memory, MB", kafka.memory.resident_mb, ours.memory.resident_mb),
            ("its peak, MB", kafka.memory.peak_mb, ours.memory.peak_mb),
            ("proportional memory, MB", kafka.memory.proportional_mb, ours.memory.proportional_mb),
        ] {
            writeln!(f, "{name:<32} {kafka:>12.2} {ours:>12.2}")?;
        }
        writeln!(f, "ratio {ratio:.3}: {}", verdict(ratio >= RATIO, "at least", RATIO))?;
        writeln!(f, "CPU ratio {cpu_ratio:.3}: {}", verdict(cpu_ratio <= CPU, "at most", CPU))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn rates_are_judged_by_the_median_of_rounds_and_cpu_time_by_their_sum() {
        let read = |seconds, millis| Fetched { seconds, bytes: 1, cpu: Duration::from_millis(millis) };
        let round = |kafka, ours| Measured { bare: kafka, ours };
        let memory = Memory { resident_mb: 1.0, peak_mb: 2.0, proportional_mb: 0.5 };
        let mut report = Report {
            backlog: Backlog {
                name: "loaded",
                data: "data".into(),
                records: 1_000,
                bytes: 500_000_000,
                batches: 10,
            },
            rounds: vec![
                round(read(1.0, 600), read(1.0, 200)),
                round(read(9.0, 600), read(1.0, 200)),
                round(read(1.0, 600), read(2.0, 500)),
            ],
            kafka: memory,
            ours: memory,
        };
        let json: serde_json::Value = serde_json::from_str(&report.json()).unwrap();
        assert_eq!((&json["ratio"], &json["fast_enough"]), (&1.0.into(), &true.into()));
        assert_eq!((&json["cpu_ratio"], &json["cheap_enough"]), (&0.5.into(), &true.into()));
        assert_eq!(json["kafka"]["cpu_s_per_gb"], 1.2);
        assert_eq!(json["ours"]["peak_mb"], 2.0);
        assert_eq!(json["rounds"][1]["kafka_records_per_s"], 111.0);
        report.rounds.push(round(read(1.0, 0), read(2.0, 0)));
        report.rounds.push(round(read(1.0, 0), read(2.0, 90)));
        let text = report.to_string();
        assert!(text.contains("ratio 0.500: MISSED"), "{text}");
        assert!(text.contains("CPU ratio 0.550: MISSED"), "{text}");
    }
}
