//! The one table of settings. The file, the environment, the flags, `millrace config` and the test of the
//! documentation all come from it.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::Config;

/// Nobody means more than a PiB.
const MAX_MIB: u64 = 1 << 30;
/// Nobody means more than a century.
const MAX_HOURS: u64 = 876_000;
const DAY_SECONDS: u64 = 24 * 60 * 60;

/// A setting of the broker.
#[derive(Debug)]
pub struct Setting {
    /// Its name in the file: `section.key`, or `key` for one that stands above all sections.
    pub key: &'static str,
    /// Its flag without the dashes.
    pub flag: &'static str,
    /// What it does.
    pub about: &'static str,
    /// What it holds.
    pub value: Value,
}

/// What a setting holds, and where that is in a [`Config`].
#[derive(Debug)]
pub enum Value {
    /// On or off.
    Switch {
        /// The value that a configuration has.
        get: fn(&Config) -> bool,
        /// Gives it another.
        set: fn(&mut Config, bool),
    },
    /// A whole number.
    Number {
        /// What is counted.
        unit: &'static str,
        /// What it may be.
        range: RangeInclusive<u64>,
        /// The value that a configuration has.
        get: fn(&Config) -> u64,
        /// Gives it another.
        set: fn(&mut Config, u64),
    },
    /// Anything that is written as text.
    Text {
        /// Its form, as the help has it.
        form: &'static str,
        /// What may be written, as an error says it.
        expected: &'static str,
        /// The value that a configuration has, if it has one.
        get: fn(&Config) -> Option<String>,
        /// Gives it another; `None` when the text is not of the form.
        set: fn(&mut Config, &str) -> Option<()>,
    },
}

/// All settings, in the order in which people read of them.
pub static SETTINGS: &[Setting] = &[
    Setting {
        key: "data_dir",
        flag: "data-dir",
        about: "Where everything is kept",
        value: Value::Text {
            form: "DIRECTORY",
            expected: "the path of a directory, such as \"/var/lib/millrace\"",
            get: |config| Some(config.broker.data_dir.display().to_string()),
            set: |config, text| {
                config.broker.data_dir = PathBuf::from(text);
                (!text.is_empty()).then_some(())
            },
        },
    },
    Setting {
        key: "allow_plaintext",
        flag: "allow-plaintext",
        about: "Listen beyond this machine without TLS and accounts",
        value: Value::Switch {
            get: |config| config.allow_plaintext,
            set: |config, on| config.allow_plaintext = on,
        },
    },
    Setting {
        key: "kafka.listen",
        flag: "kafka-listen",
        about: "Where Kafka clients connect",
        value: Value::Text {
            form: "ADDRESS:PORT",
            expected: "an address and a port, such as \"127.0.0.1:9092\"",
            get: |config| Some(config.broker.kafka_listen.to_string()),
            set: |config, text| {
                config.broker.kafka_listen = address(text)?;
                Some(())
            },
        },
    },
    Setting {
        key: "kafka.advertise",
        flag: "kafka-advertise",
        about: "What Kafka clients are told to connect to, where that differs",
        value: Value::Text {
            form: "HOST:PORT",
            expected: "HOST:PORT, such as \"millrace.example.com:9092\"",
            get: |config| config.broker.kafka_advertise.as_ref().map(|(host, port)| format!("{host}:{port}")),
            set: |config, text| {
                config.broker.kafka_advertise = Some(host_and_port(text)?);
                Some(())
            },
        },
    },
    Setting {
        key: "kafka.unsafe_produce",
        flag: "kafka-unsafe-produce",
        about: "Let every Kafka client make and write topics; for tests of clients alone",
        value: Value::Switch {
            get: |config| config.broker.unsafe_produce,
            set: |config, on| config.broker.unsafe_produce = on,
        },
    },
    Setting {
        key: "http.listen",
        flag: "http-listen",
        about: "Where health, metrics, the state of tasks and gRPC are served",
        value: Value::Text {
            form: "ADDRESS:PORT",
            expected: "an address and a port, such as \"127.0.0.1:9080\"",
            get: |config| Some(config.broker.http_listen.to_string()),
            set: |config, text| {
                config.broker.http_listen = address(text)?;
                Some(())
            },
        },
    },
    Setting {
        key: "http.tls_cert",
        flag: "http-tls-cert",
        about: "Certificate chain of the HTTP port, PEM; makes it speak TLS",
        value: Value::Text {
            form: "FILE",
            expected: "the path of a PEM file, such as \"/etc/millrace/tls.crt\"",
            get: |config| config.broker.http_tls_cert.as_ref().map(|path| path.display().to_string()),
            set: |config, text| {
                config.broker.http_tls_cert = Some(PathBuf::from(text));
                (!text.is_empty()).then_some(())
            },
        },
    },
    Setting {
        key: "http.tls_key",
        flag: "http-tls-key",
        about: "Private key of that certificate, PEM",
        value: Value::Text {
            form: "FILE",
            expected: "the path of a PEM file, such as \"/etc/millrace/tls.key\"",
            get: |config| config.broker.http_tls_key.as_ref().map(|path| path.display().to_string()),
            set: |config, text| {
                config.broker.http_tls_key = Some(PathBuf::from(text));
                (!text.is_empty()).then_some(())
            },
        },
    },
    Setting {
        key: "log.codec",
        flag: "codec",
        about: "Compression of record batches; zstd is smaller and takes more CPU",
        value: Value::Text {
            form: "none|lz4|zstd",
            expected: "\"none\", \"lz4\" or \"zstd\"",
            get: |config| Some(config.broker.codec.to_string()),
            set: |config, text| {
                config.broker.codec = text.parse().ok()?;
                Some(())
            },
        },
    },
    Setting {
        key: "log.segment_mb",
        flag: "segment-mb",
        about: "Size of a segment file; retention removes whole segments",
        value: Value::Number {
            unit: "MiB",
            range: 1..=2048,
            get: |config| config.broker.segment_bytes >> 20,
            set: |config, mib| config.broker.segment_bytes = mib << 20,
        },
    },
    Setting {
        key: "log.max_record_mb",
        flag: "max-record-mb",
        about: "The largest record; a larger one makes its task fail, or lose columns where the output says so",
        value: Value::Number {
            unit: "MiB",
            range: 1..=1535,
            get: |config| config.broker.max_record_bytes as u64 >> 20,
            set: |config, mib| config.broker.max_record_bytes = (mib as usize) << 20,
        },
    },
    Setting {
        key: "log.retention_mb",
        flag: "retention-mb",
        about: "Keep at most this much of a task's log; 0 keeps everything",
        value: Value::Number {
            unit: "MiB",
            range: 0..=MAX_MIB,
            get: |config| mib_or_zero(config.broker.retention_bytes),
            set: |config, mib| config.broker.retention_bytes = bytes_or_none(mib),
        },
    },
    Setting {
        key: "log.retention_hours",
        flag: "retention-hours",
        about: "Keep a task's log for this long; 0 keeps everything",
        value: Value::Number {
            unit: "hours",
            range: 0..=MAX_HOURS,
            get: |config| config.broker.retention_age.unwrap_or_default().as_secs() / 3600,
            set: |config, hours| {
                config.broker.retention_age = (hours > 0).then(|| Duration::from_secs(hours * 3600));
            },
        },
    },
    Setting {
        key: "group.initial_delay_ms",
        flag: "group-initial-delay-ms",
        about: "How long a new consumer group waits for more members",
        value: Value::Number {
            unit: "milliseconds",
            range: 0..=300_000,
            get: |config| config.broker.group_initial_delay.as_millis() as u64,
            set: |config, ms| config.broker.group_initial_delay = Duration::from_millis(ms),
        },
    },
    Setting {
        key: "group.offset_retention_hours",
        flag: "group-offset-retention-hours",
        about: "Keep a group's offsets for this long after it has lost its last member; 0 keeps them for ever",
        value: Value::Number {
            unit: "hours",
            range: 0..=MAX_HOURS,
            get: |config| config.broker.group_offset_retention.unwrap_or_default().as_secs() / 3600,
            set: |config, hours| {
                config.broker.group_offset_retention = (hours > 0).then(|| Duration::from_secs(hours * 3600));
            },
        },
    },
    Setting {
        key: "group.consumer_session_timeout_ms",
        flag: "group-consumer-session-timeout-ms",
        about: "A member of the consumer protocol is gone after this long without a heartbeat",
        value: Value::Number {
            unit: "milliseconds",
            range: 6_000..=1_800_000,
            get: |config| config.broker.group_consumer_session_timeout.as_millis() as u64,
            set: |config, ms| config.broker.group_consumer_session_timeout = Duration::from_millis(ms),
        },
    },
    Setting {
        key: "source.retry_minutes",
        flag: "connection-retry-minutes",
        about: "How long to try again when the source is away",
        value: Value::Number {
            unit: "minutes",
            range: 10..=1440,
            get: |config| config.broker.retry.connection.as_secs() / 60,
            set: |config, minutes| config.broker.retry.connection = Duration::from_secs(minutes * 60),
        },
    },
    Setting {
        key: "source.heartbeat_seconds",
        flag: "heartbeat-seconds",
        about: "Write a heartbeat at the source this often, so that an idle database keeps no WAL; 0 for never",
        value: Value::Number {
            unit: "seconds",
            range: 0..=DAY_SECONDS,
            get: |config| config.heartbeat.unwrap_or_default().as_secs(),
            set: |config, seconds| config.heartbeat = (seconds > 0).then(|| Duration::from_secs(seconds)),
        },
    },
    Setting {
        key: "source.wal_limit_mb",
        flag: "wal-limit-mb",
        about: "Warn when the source keeps more WAL than this for a task",
        value: Value::Number {
            unit: "MiB",
            range: 0..=MAX_MIB,
            get: |config| config.wal_limit >> 20,
            set: |config, mib| config.wal_limit = mib << 20,
        },
    },
    Setting {
        key: "source.join_at_creation",
        flag: "join-at-creation",
        about: "Make an event trigger at the source, by which a new table is captured from its first row on",
        value: Value::Switch {
            get: |config| config.join_at_creation,
            set: |config, on| config.join_at_creation = on,
        },
    },
    Setting {
        key: "source.experimental_catch_up_mb",
        flag: "experimental-catch-up-mb",
        about: "Experimental: read a backlog of more WAL than this by SQL, which can be faster; 0 for never",
        value: Value::Number {
            unit: "MiB",
            range: 0..=MAX_MIB,
            get: |config| mib_or_zero(config.catch_up),
            set: |config, mib| config.catch_up = bytes_or_none(mib),
        },
    },
    Setting {
        key: "snapshot.connections",
        flag: "snapshot-connections",
        about: "How many connections read existing rows at the same time",
        value: Value::Number {
            unit: "connections",
            range: 1..=64,
            get: |config| config.read.connections as u64,
            set: |config, connections| config.read.connections = connections as usize,
        },
    },
    Setting {
        key: "snapshot.limit_mb_per_second",
        flag: "snapshot-limit-mb-per-second",
        about: "How fast existing rows are read at most; 0 for as fast as it goes",
        value: Value::Number {
            unit: "MiB",
            range: 0..=MAX_MIB,
            get: |config| mib_or_zero(config.read.bytes_per_second),
            set: |config, mib| config.read.bytes_per_second = bytes_or_none(mib),
        },
    },
    Setting {
        key: "snapshot.max_age_minutes",
        flag: "snapshot-max-age-minutes",
        about: "How long one transaction is held at the source to read existing rows",
        value: Value::Number {
            unit: "minutes",
            range: 1..=MAX_HOURS,
            get: |config| config.read.max_age.as_secs() / 60,
            set: |config, minutes| config.read.max_age = Duration::from_secs(minutes * 60),
        },
    },
    Setting {
        key: "task.retry_minutes",
        flag: "retry-minutes",
        about: "How long to try again at other trouble that may pass",
        value: Value::Number {
            unit: "minutes",
            range: 1..=1440,
            get: |config| config.broker.retry.other.as_secs() / 60,
            set: |config, minutes| config.broker.retry.other = Duration::from_secs(minutes * 60),
        },
    },
];

impl Setting {
    /// The setting of a key.
    pub fn named(key: &str) -> Option<&'static Setting> {
        SETTINGS.iter().find(|setting| setting.key == key)
    }

    /// Its section in the file; empty for one that stands above all sections.
    pub fn section(&self) -> &'static str {
        self.key.split_once('.').map_or("", |(section, _)| section)
    }

    /// Its environment variable.
    pub fn variable(&self) -> String {
        format!("MILLRACE_{}", self.key.replace('.', "_").to_ascii_uppercase())
    }

    /// Its value in a configuration as the file would have it; `None` when it has none.
    pub fn render(&self, config: &Config) -> Option<String> {
        match &self.value {
            Value::Switch { get, .. } => Some(get(config).to_string()),
            Value::Number { get, .. } => Some(get(config).to_string()),
            // What JSON escapes in a string, TOML does alike.
            Value::Text { get, .. } => get(config).map(|text| serde_json::Value::from(text).to_string()),
        }
    }

    /// Gives a configuration the value that a text stands for, wherever it was written; says what to write when it
    /// stands for none.
    pub fn set(&self, config: &mut Config, text: &str) -> Result<(), String> {
        let taken = match &self.value {
            Value::Switch { set, .. } => switch(text).map(|on| set(config, on)),
            Value::Number { range, set, .. } => {
                text.parse().ok().filter(|number| range.contains(number)).map(|number| set(config, number))
            }
            Value::Text { set, .. } => set(config, text),
        };
        taken.ok_or_else(|| match self.value {
            Value::Text { .. } => format!("{text:?} does not fit; write {}", self.expected()),
            _ => format!("{text} does not fit; write {}", self.expected()),
        })
    }

    /// What may be written.
    pub fn expected(&self) -> String {
        match &self.value {
            Value::Switch { .. } => "true or false".to_owned(),
            Value::Number { unit, range, .. } => {
                format!("a whole number of {unit} from {} to {}", range.start(), range.end())
            }
            Value::Text { expected, .. } => (*expected).to_owned(),
        }
    }
}

/// Of a limit that need not be.
fn mib_or_zero(bytes: Option<u64>) -> u64 {
    bytes.unwrap_or(0) >> 20
}

fn bytes_or_none(mib: u64) -> Option<u64> {
    (mib > 0).then_some(mib << 20)
}

fn switch(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Some(true),
        "false" | "0" | "no" | "off" => Some(false),
        _ => None,
    }
}

fn address(text: &str) -> Option<SocketAddr> {
    text.parse().ok()
}

fn host_and_port(text: &str) -> Option<(String, u16)> {
    let (host, port) = text.rsplit_once(':').filter(|(host, _)| !host.is_empty())?;
    Some((host.to_owned(), port.parse().ok()?))
}
