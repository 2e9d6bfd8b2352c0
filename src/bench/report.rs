//! What was measured, as a table or as one JSON object. Rates count 10^6 bytes of pgoutput messages as a megabyte, and so
//! does memory.

use std::fmt;
use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;

use super::site::Transport;
use super::workload::Workload;

/// One drain.
#[derive(Debug, Clone, Copy)]
pub(super) struct Drain {
    pub(super) seconds: f64,
    /// Bytes of pgoutput messages, where the side counts them.
    pub(super) bytes: Option<u64>,
    /// CPU time of the process that read.
    pub(super) cpu: Duration,
    pub(super) walsender_cpu: Option<Duration>,
    pub(super) consumer_cpu: Option<Duration>,
    pub(super) peak_memory: u64,
    /// From the first statement to the first bytes on disk, or in the bare reader's hands.
    pub(super) first_byte: Option<Duration>,
}

impl Drain {
    pub(super) fn rows_per_s(&self, rows: u64) -> f64 {
        rows as f64 / self.seconds
    }
}

/// A measurement of several rounds.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) workload: Workload,
    pub(super) transport: Transport,
    pub(super) server_version: u32,
    pub(super) rows: u64,
    pub(super) transactions: u64,
    /// The bare reader and Millrace, round by round.
    pub(super) rounds: Vec<(Drain, Drain)>,
    /// Resident memory of Millrace with nothing to do.
    pub(super) idle_memory: u64,
}

/// The medians of a side, and its peak memory.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Figures {
    rows_per_s: f64,
    mb_per_s: f64,
    seconds: f64,
    cpu_s: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    walsender_cpu_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    consumer_cpu_s: Option<f64>,
    peak_memory_mb: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    idle_memory_mb: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_byte_s: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Summary {
    workload: String,
    transport: String,
    server_version: u32,
    rows: u64,
    transactions: u64,
    rounds: usize,
    ratio: f64,
    ratios: Vec<f64>,
    ours: Figures,
    bare: Figures,
}

impl Report {
    /// One JSON object.
    pub(super) fn json(&self) -> String {
        serde_json::to_string(&self.summary()).unwrap_or_default()
    }

    fn summary(&self) -> Summary {
        let name = |value: Option<clap::builder::PossibleValue>| {
            value.map(|value| value.get_name().to_owned()).unwrap_or_default()
        };
        let ratios: Vec<f64> = self.rounds.iter().map(|(bare, ours)| bare.seconds / ours.seconds).collect();
        let bytes = self.rounds.iter().find_map(|(bare, _)| bare.bytes).unwrap_or_default();
        let bare: Vec<Drain> = self.rounds.iter().map(|(bare, _)| *bare).collect();
        let ours: Vec<Drain> = self.rounds.iter().map(|(_, ours)| *ours).collect();
        Summary {
            workload: name(self.workload.to_possible_value()),
            transport: name(self.transport.to_possible_value()),
            server_version: self.server_version,
            rows: self.rows,
            transactions: self.transactions,
            rounds: self.rounds.len(),
            ratio: rounded(median(ratios.iter().copied())),
            ratios: ratios.into_iter().map(rounded).collect(),
            ours: Figures {
                idle_memory_mb: Some(megabytes(self.idle_memory)),
                ..Figures::of(&ours, self.rows, bytes)
            },
            bare: Figures::of(&bare, self.rows, bytes),
        }
    }
}

impl Figures {
    fn of(drains: &[Drain], rows: u64, bytes: u64) -> Self {
        let seconds = median(drains.iter().map(|drain| drain.seconds));
        let of_each = |time: fn(&Drain) -> Option<Duration>| {
            let times: Vec<f64> =
                drains.iter().filter_map(|drain| Some(time(drain)?.as_secs_f64())).collect();
            (!times.is_empty()).then(|| rounded(median(times.into_iter())))
        };
        Figures {
            rows_per_s: (rows as f64 / seconds).round(),
            mb_per_s: rounded(bytes as f64 / 1e6 / seconds),
            seconds: rounded(seconds),
            cpu_s: rounded(median(drains.iter().map(|drain| drain.cpu.as_secs_f64()))),
            walsender_cpu_s: of_each(|drain| drain.walsender_cpu),
            consumer_cpu_s: of_each(|drain| drain.consumer_cpu),
            peak_memory_mb: megabytes(drains.iter().map(|drain| drain.peak_memory).max().unwrap_or_default()),
            idle_memory_mb: None,
            first_byte_s: of_each(|drain| drain.first_byte),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Summary {
            workload,
            transport,
            server_version,
            rows,
            transactions,
            rounds,
            ratio,
            ours,
            bare,
            ..
        } = self.summary();
        writeln!(
            f,
            "{workload}: {rows} rows in {transactions} transactions, PostgreSQL {}.{}, {transport}, {rounds} rounds\n",
            server_version / 10_000,
            server_version % 10_000
        )?;
        writeln!(f, "{:>7} {:>14} {:>14} {:>8}", "round", "bare rows/s", "ours rows/s", "ratio")?;
        for (number, (bare, ours)) in self.rounds.iter().enumerate() {
            writeln!(
                f,
                "{:>7} {:>14.0} {:>14.0} {:>8.3}",
                number + 1,
                bare.rows_per_s(rows),
                ours.rows_per_s(rows),
                bare.seconds / ours.seconds
            )?;
        }
        writeln!(f, "{:>7} {:>14.0} {:>14.0} {:>8.3}\n", "median", bare.rows_per_s, ours.rows_per_s, ratio)?;
        let mut line = |name: &str, bare: Option<f64>, ours: Option<f64>| {
            let show = |value: Option<f64>| {
                value.map(|value| format!("{value:.2}")).unwrap_or_else(|| "-".to_owned())
            };
            writeln!(f, "{name:<24} {:>12} {:>12}", show(bare), show(ours))
        };
        line("MB/s from the source", Some(bare.mb_per_s), Some(ours.mb_per_s))?;
        line("CPU s, reading process", Some(bare.cpu_s), Some(ours.cpu_s))?;
        line("CPU s, walsender", bare.walsender_cpu_s, ours.walsender_cpu_s)?;
        line("CPU s, consumer", bare.consumer_cpu_s, ours.consumer_cpu_s)?;
        line("peak memory, MB", Some(bare.peak_memory_mb), Some(ours.peak_memory_mb))?;
        line("idle memory, MB", bare.idle_memory_mb, ours.idle_memory_mb)?;
        line("first byte, s", bare.first_byte_s, ours.first_byte_s)
    }
}

/// The middle value, or the mean of the two in the middle; 0 of none.
pub(super) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    match (values.get(half.wrapping_sub(1)), values.get(half)) {
        (Some(below), Some(above)) if values.len().is_multiple_of(2) => (below + above) / 2.0,
        (_, Some(middle)) => *middle,
        _ => 0.0,
    }
}

pub(super) fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

fn megabytes(bytes: u64) -> f64 {
    rounded(bytes as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(seconds: f64) -> Drain {
        Drain {
            seconds,
            bytes: Some(200_000_000),
            cpu: Duration::from_secs(1),
            walsender_cpu: None,
            consumer_cpu: None,
            peak_memory: 50_000_000,
            first_byte: None,
        }
    }

    #[test]
    fn the_median_of_none_one_two_and_three() {
        for (values, middle) in [(&[][..], 0.0), (&[3.0], 3.0), (&[3.0, 1.0], 2.0), (&[9.0, 1.0, 2.0], 2.0)] {
            assert_eq!(median(values.iter().copied()), middle);
        }
    }

    #[test]
    fn the_ratio_is_the_median_of_the_rounds_and_not_the_ratio_of_medians() {
        let report = Report {
            workload: Workload::Orders,
            transport: Transport::Tcp,
            server_version: 150_018,
            rows: 1_000_000,
            transactions: 1_000,
            rounds: vec![(drain(8.0), drain(10.0)), (drain(18.0), drain(20.0)), (drain(10.0), drain(10.0))],
            idle_memory: 20_000_000,
        };
        let json: serde_json::Value = serde_json::from_str(&report.json()).unwrap();
        assert_eq!(json["ratio"], 0.9);
        assert_eq!(json["ratios"], serde_json::json!([0.8, 0.9, 1.0]));
        assert_eq!(json["bare"]["rows_per_s"], 100_000.0);
        assert_eq!(json["ours"]["mb_per_s"], 20.0);
        assert_eq!(json["ours"]["idle_memory_mb"], 20.0);
        assert_eq!((&json["workload"], &json["transport"]), (&"orders".into(), &"tcp".into()));
        assert!(json["bare"].get("first_byte_s").is_none());
        assert!(report.to_string().contains("median"));
    }
}
