//! The broker's settings: where each comes from, and every error at once with its place.
//!
//! A flag wins over the environment, the environment over the file, the file over the default. All of them are read by
//! the same table, [`SETTINGS`], and all are checked, also where another one wins. Nothing is started and no file is
//! touched before all of it is right.

mod error;
mod file;
mod nearest;
mod settings;
mod tasks;

use std::collections::BTreeMap;
use std::time::Duration;

pub use error::{ConfigError, ConfigErrors, Origin};
pub use file::File;
pub use settings::{SETTINGS, Setting, Value};
pub use tasks::WantedTask;

use crate::broker::Settings;
use crate::postgres::snapshot::ReadOptions;

/// A configuration that is right.
#[derive(Debug, Clone)]
pub struct Config {
    /// What the broker is started with.
    pub broker: Settings,
    /// Listen beyond this machine without TLS and accounts.
    pub allow_plaintext: bool,
    /// How often to write a heartbeat at each source; `None` for never.
    pub heartbeat: Option<Duration>,
    /// Warn when a source keeps more WAL than this for a task, in bytes.
    pub wal_limit: u64,
    /// How existing rows are read.
    pub read: ReadOptions,
    /// Have new tables join in their creating transaction, where our role may.
    pub join_at_creation: bool,
    /// Read a backlog of more WAL than this, in bytes, by SQL; `None` for never.
    pub catch_up: Option<u64>,
    /// The tasks that the file asks for, each with another name and outputs of other names.
    pub tasks: Vec<WantedTask>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            broker: Settings::default(),
            allow_plaintext: false,
            heartbeat: Some(Duration::from_secs(10)),
            wal_limit: 10_240 << 20,
            read: ReadOptions::default(),
            join_at_creation: false,
            catch_up: None,
            tasks: Vec::new(),
        }
    }
}

/// A configuration, and where each of its settings comes from.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    origins: BTreeMap<&'static str, Origin>,
}

impl Loaded {
    /// Where a setting comes from.
    pub fn origin(&self, setting: &Setting) -> &Origin {
        self.origins.get(setting.key).unwrap_or(&Origin::Default)
    }
}

/// Reads all settings.
///
/// # Errors
/// All that is wrong with any of them.
pub fn load(
    file: Option<&File>,
    environment: &[(String, String)],
    flags: &[(&'static Setting, String)],
) -> Result<Loaded, ConfigErrors> {
    let mut loader = Loader::default();
    if let Some(file) = file {
        file::Reader::new(file, &mut loader).read();
    }
    loader.read_environment(environment);
    for (setting, text) in flags {
        loader.take(setting, text, Origin::Flag(setting.flag));
    }
    loader.check_listeners();
    loader.errors.into_result(loader.loaded)
}

/// What is known while settings are read.
#[derive(Debug, Default)]
struct Loader {
    loaded: Loaded,
    errors: ConfigErrors,
}

impl Loader {
    /// A value from somewhere; a later one wins.
    fn take(&mut self, setting: &'static Setting, text: &str, origin: Origin) {
        if let Err(message) = setting.set(&mut self.loaded.config, text) {
            self.errors.add(&origin, setting.key, message);
        }
        self.loaded.origins.insert(setting.key, origin);
    }

    /// An empty variable counts as one that is not there. One that is not ours may be anybody's (Kubernetes makes some
    /// from the names of services), so only what looks like a slip of the pen is refused.
    fn read_environment(&mut self, environment: &[(String, String)]) {
        let variables: Vec<String> = SETTINGS.iter().map(Setting::variable).collect();
        for (setting, variable) in SETTINGS.iter().zip(&variables) {
            let value = environment.iter().find(|(name, value)| name == variable && !value.is_empty());
            if let Some((_, value)) = value {
                self.take(setting, value, Origin::Variable(variable.clone()));
            }
        }
        for (name, _) in environment.iter().filter(|(name, _)| !variables.contains(name)) {
            if let Some(near) = nearest::nearest(name, variables.iter().map(String::as_str)) {
                let origin = Origin::Variable(name.clone());
                self.errors.add(&origin, "", format!("there is no such setting; did you mean {near}?"));
            }
        }
    }

    /// Where the listeners listen: safe unless told otherwise, and each for itself. A client of Kafka connects to what
    /// it is told, so that must be a place.
    fn check_listeners(&mut self) {
        let Config { broker, allow_plaintext, .. } = &self.loaded.config;
        let (kafka, http) = (broker.kafka_listen, broker.http_listen);
        let advertised = broker.kafka_advertise.is_some() || self.errors.concern("kafka.advertise");
        if kafka.ip().is_unspecified() && !advertised {
            let message = format!(
                "{kafka} is every address of this machine, and clients must be told one of them; set \
                 kafka.advertise (--kafka-advertise)"
            );
            let origin = self.origin_of_last(&["kafka.listen"]);
            self.errors.add(&origin, "kafka.listen", message);
        }
        if kafka == http && kafka.port() != 0 {
            let message = format!("kafka.listen has {kafka} already; give each a port of its own");
            let origin = self.origin_of_last(&["kafka.listen", "http.listen"]);
            self.errors.add(&origin, "http.listen", message);
        }
        if broker.unsafe_produce && !kafka.ip().is_loopback() {
            let message = format!(
                "kafka.listen is {kafka}, which is open to other machines, and anyone there could write and delete topics; \
                 listen on 127.0.0.1, or leave kafka.unsafe_produce off: it is for tests alone"
            );
            let origin = self.origin_of_last(&["kafka.unsafe_produce", "kafka.listen"]);
            self.errors.add(&origin, "kafka.unsafe_produce", message);
        }
        if *allow_plaintext || self.errors.concern("allow_plaintext") {
            return;
        }
        for (key, address) in [("kafka.listen", kafka), ("http.listen", http)] {
            if !address.ip().is_loopback() {
                let message = format!(
                    "{address} is open to other machines, and anyone there could read everything; listen on \
                     127.0.0.1, or set allow_plaintext (--allow-plaintext) if the network is yours"
                );
                let origin = self.origin_of_last(&[key]);
                self.errors.add(&origin, key, message);
            }
        }
    }

    /// The origin that has most weight among those of some settings.
    fn origin_of_last(&self, keys: &[&'static str]) -> Origin {
        keys.iter().filter_map(|key| self.loaded.origins.get(key)).max().cloned().unwrap_or(Origin::Default)
    }
}

#[cfg(test)]
mod tests;
