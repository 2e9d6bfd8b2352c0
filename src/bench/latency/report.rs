//! What was measured, as a table or as one JSON object, and what it should have been.

use std::fmt;

use serde::Serialize;

use crate::bench::report::rounded;

/// How latencies are spread, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Spread {
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
}

impl Spread {
    /// Of latencies in microseconds.
    pub(super) fn of(micros: impl Iterator<Item = i64>) -> Self {
        let mut sorted: Vec<i64> = micros.collect();
        sorted.sort_unstable();
        // The least that so many percent do not exceed.
        let percentile = |percent: usize| {
            let rank = (sorted.len() * percent).div_ceil(100);
            rounded(sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default() as f64 / 1e3)
        };
        Spread { p50_ms: percentile(50), p99_ms: percentile(99), max_ms: percentile(100) }
    }
}

/// One number of partitions.
#[derive(Debug, Serialize)]
pub(super) struct Phase {
    pub(super) partitions: u32,
    pub(super) bare: Spread,
    pub(super) ours: Spread,
}

/// A measurement.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) server_version: u32,
    pub(super) rate: u32,
    /// How long each phase took.
    pub(super) seconds: u32,
    /// With one partition first.
    pub(super) phases: Vec<Phase>,
}

/// What is asked of a figure: at most so much.
#[derive(Debug, PartialEq, Serialize)]
struct Verdict {
    figure: String,
    value: f64,
    must: f64,
    aim: f64,
    verdict: &'static str,
}

#[derive(Debug, Serialize)]
struct Summary<'a> {
    server_version: u32,
    transactions_per_s: u32,
    seconds: u32,
    phases: &'a [Phase],
    verdicts: Vec<Verdict>,
}

impl Verdict {
    fn new(figure: String, value: f64, must: f64, aim: f64) -> Self {
        let verdict = match value {
            _ if value <= aim => "reaches the aim",
            _ if value <= must => "good enough",
            _ => "too slow",
        };
        Verdict { figure, value, must, aim, verdict }
    }
}

impl Report {
    /// One JSON object.
    pub(super) fn json(&self) -> String {
        let summary = Summary {
            server_version: self.server_version,
            transactions_per_s: self.rate,
            seconds: self.seconds,
            phases: &self.phases,
            verdicts: self.verdicts(),
        };
        serde_json::to_string(&summary).unwrap_or_default()
    }

    fn verdicts(&self) -> Vec<Verdict> {
        let mut verdicts = Vec::new();
        let Some(one) = self.phases.first() else { return verdicts };
        for (name, value, must, aim) in
            [("p50", one.ours.p50_ms, 5.0, 1.5), ("p99", one.ours.p99_ms, 25.0, 5.0)]
        {
            verdicts.push(Verdict::new(format!("{name}, ms"), value, must, aim));
        }
        for many in self.phases.iter().skip(1) {
            let ratios =
                [("p50", many.ours.p50_ms, one.ours.p50_ms), ("p99", many.ours.p99_ms, one.ours.p99_ms)];
            for (name, many_ms, one_ms) in ratios {
                let figure = format!("{name}, {} partitions ÷ one", many.partitions);
                verdicts.push(Verdict::new(figure, rounded(many_ms / one_ms), 2.0, 1.1));
            }
        }
        verdicts
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} transactions a second for {} s, PostgreSQL {}.{}; from the commit at the source, in ms\n",
            self.rate,
            self.seconds,
            self.server_version / 10_000,
            self.server_version % 10_000
        )?;
        writeln!(
            f,
            "{:>10} {:>9} {:>9} {:>9} {:>10} {:>9} {:>9}",
            "partitions", "bare p50", "p99", "max", "ours p50", "p99", "max"
        )?;
        for Phase { partitions, bare, ours } in &self.phases {
            writeln!(
                f,
                "{partitions:>10} {:>9.2} {:>9.2} {:>9.2} {:>10.2} {:>9.2} {:>9.2}",
                bare.p50_ms, bare.p99_ms, bare.max_ms, ours.p50_ms, ours.p99_ms, ours.max_ms
            )?;
        }
        writeln!(f, "\n{:<28} {:>8} {:>8} {:>8}", "", "value", "must", "aim")?;
        for Verdict { figure, value, must, aim, verdict } in self.verdicts() {
            writeln!(f, "{figure:<28} {value:>8.2} {must:>8.2} {aim:>8.2}  {verdict}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let spread = Spread::of((1..=200).rev().map(|n| n * 1_000));
        assert_eq!(spread, Spread { p50_ms: 100.0, p99_ms: 198.0, max_ms: 200.0 });
        let one = Spread::of([-250].into_iter());
        assert_eq!(one, Spread { p50_ms: -0.25, p99_ms: -0.25, max_ms: -0.25 });
    }

    #[test]
    fn each_figure_gets_its_verdict() {
        let ours = |p50_ms, p99_ms| Spread { p50_ms, p99_ms, max_ms: 99.0 };
        let phase = |partitions, ours| Phase { partitions, bare: Spread::of([].into_iter()), ours };
        let report = Report {
            server_version: 150_018,
            rate: 100,
            seconds: 30,
            phases: vec![phase(1, ours(1.0, 30.0)), phase(1_000, ours(1.9, 30.0))],
        };
        let json: serde_json::Value = serde_json::from_str(&report.json()).unwrap();
        let verdicts: Vec<_> =
            json["verdicts"].as_array().unwrap().iter().map(|verdict| verdict["verdict"].clone()).collect();
        assert_eq!(verdicts, ["reaches the aim", "too slow", "good enough", "reaches the aim"]);
        assert_eq!(json["verdicts"][2]["value"], 1.9);
        assert!(report.to_string().contains("1000 partitions"));
    }
}
