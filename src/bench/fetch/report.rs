//! What was measured, as a table or as one JSON object, and what it should have been.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::backlog::Backlog;
use super::client::Client;
use super::tailing::CONSUMERS;
use crate::bench::report::{median, rounded};

/// The least ratio of each backlog.
const MUST: [f64; 2] = [0.90, 0.80];
/// CPU seconds that a GB may cost.
const CPU_PER_GB: f64 = 1.0;
/// What a hundred consumers may cost of what ten do.
const TAILING: f64 = 3.0;

/// A backlog as a consumer read it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fetched {
    pub(super) seconds: f64,
    /// Of keys and values.
    pub(super) bytes: u64,
    /// Of the server.
    pub(super) cpu: Duration,
}

/// A round of one consumer and one backlog.
#[derive(Debug, Clone, Copy)]
pub(super) struct Measured {
    pub(super) bare: Fetched,
    pub(super) ours: Fetched,
}

/// A measurement of several rounds.
#[derive(Debug)]
pub(super) struct Report {
    rounds: u32,
    parts: Vec<Part>,
}

/// One consumer and one backlog.
#[derive(Debug)]
struct Part {
    backlog: &'static str,
    client: &'static str,
    records: u64,
    batches: u64,
    bytes: u64,
    must: f64,
    rounds: Vec<Measured>,
}

#[derive(Debug, Serialize)]
struct Summary {
    backlog: &'static str,
    client: &'static str,
    records: u64,
    batches: u64,
    stored_mb: f64,
    ratio: f64,
    ratios: Vec<f64>,
    ours: Figures,
    bare: Figures,
    fast_enough: bool,
    cheap_enough: bool,
}

/// The medians of a side.
#[derive(Debug, Serialize)]
struct Figures {
    records_per_s: f64,
    mb_per_s: f64,
    cpu_s_per_gb: f64,
}

impl Report {
    pub(super) fn new(backlogs: &[Backlog], clients: &[Client], rounds: u32) -> Self {
        let mut parts = Vec::new();
        for (backlog, must) in backlogs.iter().zip(MUST) {
            parts.extend(clients.iter().map(|client| Part {
                backlog: backlog.name,
                client: client.name(),
                records: backlog.records,
                batches: backlog.batches,
                bytes: backlog.bytes,
                must,
                rounds: Vec::new(),
            }));
        }
        Report { rounds, parts }
    }

    /// Adds a round of a backlog and a client, by their numbers.
    pub(super) fn add(&mut self, backlog: usize, client: usize, measured: Measured) {
        let clients = self.parts.len() / MUST.len();
        if let Some(part) = self.parts.get_mut(backlog * clients + client) {
            part.rounds.push(measured);
        }
    }

    /// One JSON object.
    pub(super) fn json(&self) -> String {
        let parts: Vec<_> = self.parts.iter().map(Part::summary).collect();
        serde_json::json!({ "rounds": self.rounds, "backlogs": parts }).to_string()
    }
}

impl Part {
    fn summary(&self) -> Summary {
        let ratios: Vec<f64> =
            self.rounds.iter().map(|round| round.bare.seconds / round.ours.seconds).collect();
        let ratio = median(ratios.iter().copied());
        let ours = self.figures(|round| round.ours);
        Summary {
            backlog: self.backlog,
            client: self.client,
            records: self.records,
            batches: self.batches,
            stored_mb: rounded(self.bytes as f64 / 1e6),
            ratio: rounded(ratio),
            ratios: ratios.into_iter().map(rounded).collect(),
            fast_enough: ratio >= self.must,
            cheap_enough: ours.cpu_s_per_gb < CPU_PER_GB,
            ours,
            bare: self.figures(|round| round.bare),
        }
    }

    fn figures(&self, side: impl Fn(&Measured) -> Fetched) -> Figures {
        let of_each = |figure: &dyn Fn(Fetched) -> f64| {
            rounded(median(self.rounds.iter().map(|round| figure(side(round)))))
        };
        let gigabytes = self.bytes as f64 / 1e9;
        Figures {
            records_per_s: of_each(&|read| (self.records as f64 / read.seconds).round()),
            mb_per_s: of_each(&|read| read.bytes as f64 / 1e6 / read.seconds),
            cpu_s_per_gb: of_each(&|read| read.cpu.as_secs_f64() / gigabytes),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in &self.parts {
            let Summary { backlog, client, records, batches, stored_mb, ratio, ours, bare, .. } =
                &part.summary();
            writeln!(
                f,
                "{backlog}, {client}: {records} records in {batches} batches of {stored_mb:.1} MB, {} rounds",
                self.rounds
            )?;
            writeln!(f, "{:<32} {:>12} {:>12}", "", "bare", "ours")?;
            for (name, bare, ours) in [
                ("records/s", bare.records_per_s, ours.records_per_s),
                ("MB/s of keys and values", bare.mb_per_s, ours.mb_per_s),
                ("CPU s per GB sent", bare.cpu_s_per_gb, ours.cpu_s_per_gb),
            ] {
                writeln!(f, "{name:<32} {bare:>12.2} {ours:>12.2}")?;
            }
            writeln!(f, "ratio {ratio:.3}: {}", verdict(*ratio >= part.must, "at least", part.must))?;
            let cpu = ours.cpu_s_per_gb;
            writeln!(f, "CPU s per GB {cpu:.2}: {}\n", verdict(cpu < CPU_PER_GB, "below", CPU_PER_GB))?;
        }
        Ok(())
    }
}

pub(super) fn verdict(met: bool, relation: &str, must: f64) -> String {
    format!("{}; must be {relation} {must:.2}", if met { "met" } else { "MISSED" })
}

/// What consumers at a topic's end cost.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Tail {
    /// Of the broker.
    pub(super) cpu: Duration,
    pub(super) seconds: f64,
    /// That all consumers have had together.
    pub(super) answers: u64,
}

/// A measurement of tailing consumers.
#[derive(Debug)]
pub(super) struct Tailing {
    pub(super) rate: u32,
    pub(super) seconds: u32,
    /// Of each number of [`CONSUMERS`].
    pub(super) rounds: Vec<[Tail; 2]>,
}

impl Tailing {
    /// One JSON object.
    pub(super) fn json(&self) -> String {
        let ratio = self.ratio();
        let tails: Vec<_> = CONSUMERS
            .iter()
            .enumerate()
            .map(|(nth, consumers)| {
                serde_json::json!({
                    "consumers": consumers,
                    "cpu_percent": rounded(self.cpu_percent(nth)),
                    "answers_per_s": self.answers_per_s(nth).round(),
                })
            })
            .collect();
        serde_json::json!({
            "rate": self.rate,
            "seconds": self.seconds,
            "rounds": self.rounds.len(),
            "ratio": rounded(ratio),
            "tailing": tails,
            "cheap_enough": ratio < TAILING,
        })
        .to_string()
    }

    fn ratio(&self) -> f64 {
        let share = |tail: &Tail| tail.cpu.as_secs_f64() / tail.seconds;
        median(self.rounds.iter().map(|[ten, hundred]| share(hundred) / share(ten)))
    }

    fn cpu_percent(&self, nth: usize) -> f64 {
        median(self.rounds.iter().map(|tails| 100.0 * tails[nth].cpu.as_secs_f64() / tails[nth].seconds))
    }

    fn answers_per_s(&self, nth: usize) -> f64 {
        median(self.rounds.iter().map(|tails| tails[nth].answers as f64 / tails[nth].seconds))
    }
}

impl fmt::Display for Tailing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (rate, seconds, rounds) = (self.rate, self.seconds, self.rounds.len());
        writeln!(f, "{rate} transactions a second, {rounds} rounds of {seconds} s each\n")?;
        writeln!(f, "{:>10} {:>14} {:>14}", "consumers", "CPU, percent", "answers/s")?;
        for (nth, consumers) in CONSUMERS.iter().enumerate() {
            let (cpu, answers) = (self.cpu_percent(nth), self.answers_per_s(nth));
            writeln!(f, "{consumers:>10} {cpu:>14.2} {answers:>14.0}")?;
        }
        let ratio = self.ratio();
        writeln!(f, "\nratio {ratio:.2}: {}", verdict(ratio < TAILING, "below", TAILING))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(seconds: f64) -> Fetched {
        Fetched { seconds, bytes: 400_000_000, cpu: Duration::from_millis(50) }
    }

    #[test]
    fn the_ratio_is_the_median_of_the_rounds_and_is_judged() {
        let part = |must, ours| Part {
            backlog: "loaded",
            client: "java",
            records: 1_000_000,
            batches: 100,
            bytes: 100_000_000,
            must,
            rounds: vec![
                Measured { bare: read(1.0), ours: read(ours) },
                Measured { bare: read(9.0), ours: read(10.0) },
                Measured { bare: read(1.0), ours: read(4.0) },
            ],
        };
        let report = Report { rounds: 3, parts: vec![part(0.9, 1.0), part(0.95, 1.25)] };
        let json: serde_json::Value = serde_json::from_str(&report.json()).unwrap();
        assert_eq!(json["backlogs"][0]["ratio"], 0.9);
        assert_eq!(json["backlogs"][0]["fast_enough"], true);
        assert_eq!(json["backlogs"][1]["fast_enough"], false);
        assert_eq!(json["backlogs"][0]["ours"]["cpu_s_per_gb"], 0.5);
        assert_eq!(json["backlogs"][0]["cheap_enough"], true);
        assert!(report.to_string().contains("MISSED"));
    }

    #[test]
    fn a_hundred_consumers_are_judged_by_what_ten_cost() {
        let tail = |millis| Tail { cpu: Duration::from_millis(millis), seconds: 10.0, answers: 1_000 };
        let report = Tailing { rate: 100, seconds: 10, rounds: vec![[tail(100), tail(250)]] };
        let json: serde_json::Value = serde_json::from_str(&report.json()).unwrap();
        assert_eq!((&json["ratio"], &json["cheap_enough"]), (&2.5.into(), &true.into()));
        assert_eq!(json["tailing"][1]["answers_per_s"], 100.0);
    }
}
