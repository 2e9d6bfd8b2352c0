//! A tool, run as its shell script would run it.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use millrace_test_support::apache_kafka_libraries;

pub const CONFIGS: &str = "kafka.admin.ConfigCommand";
pub const CONSOLE_CONSUMER: &str = "org.apache.kafka.tools.consumer.ConsoleConsumer";
pub const CONSUMER_GROUPS: &str = "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand";
pub const TOPICS: &str = "org.apache.kafka.tools.TopicCommand";

/// What a tool printed, and whether it was content.
#[derive(Debug)]
pub struct Printed {
    pub succeeded: bool,
    pub text: String,
}

impl Printed {
    /// Its lines, split at white space.
    pub fn rows(&self) -> Vec<Vec<&str>> {
        self.text.lines().map(|line| line.split_whitespace().collect()).collect()
    }

    /// The lines of a table that begin with the same word, by the name of the column.
    pub fn column<'a>(&'a self, first: &str, name: &str) -> Vec<&'a str> {
        let rows = self.rows();
        let at = rows.iter().find_map(|row| row.iter().position(|word| *word == name));
        let at = at.unwrap_or_else(|| panic!("no column {name}: {self:#?}"));
        rows.iter().filter(|row| row.first() == Some(&first)).map(|row| row[at]).collect()
    }

    #[track_caller]
    pub fn assert_has(&self, wanted: &str) {
        assert!(self.text.contains(wanted), "'{wanted}' is not in {self:#?}");
    }

    #[track_caller]
    pub fn assert_has_line(&self, wanted: &str) {
        assert!(self.text.lines().any(|line| line.trim() == wanted), "no line is '{wanted}' in {self:#?}");
    }
}

/// Runs a tool that is content.
#[track_caller]
pub fn run(class: &str, args: &[&str]) -> Printed {
    let printed = output(class, args);
    assert!(printed.succeeded, "{class} {args:?}: {printed:#?}");
    printed
}

/// Runs a tool that fails.
#[track_caller]
pub fn refused(class: &str, args: &[&str]) -> Printed {
    let printed = output(class, args);
    assert!(!printed.succeeded, "{class} {args:?}: {printed:#?}");
    printed
}

fn output(class: &str, args: &[&str]) -> Printed {
    let output = java(class, args).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    // The tools bring no logger, and their scripts' configuration of one is not there.
    let lines = text.lines().filter(|line| !line.starts_with("SLF4J: "));
    Printed { succeeded: output.status.success(), text: lines.map(|line| format!("{line}\n")).collect() }
}

fn java(class: &str, args: &[&str]) -> Command {
    let mut command = Command::new("java");
    command.args(["-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp"]);
    command.arg(apache_kafka_libraries().join("*")).arg(class).args(args).stdin(Stdio::null());
    command
}

/// A tool that runs until it is dropped.
pub struct Running(Child);

impl Running {
    pub fn start(class: &str, args: &[&str]) -> Running {
        Running(java(class, args).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap())
    }

    /// Waits until it has printed so many lines.
    pub fn wait_for_lines(&mut self, lines: usize) {
        let stdout = BufReader::new(self.0.stdout.as_mut().unwrap());
        assert_eq!(stdout.lines().map_while(Result::ok).take(lines).count(), lines);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
