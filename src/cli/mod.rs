//! The command line: one file a command.

mod api;
mod config;
mod consume;
mod objects;
mod precheck;
mod serve;
mod task;
mod tasks;
mod up;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

/// What a command ends with. The codes are part of what users rely on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Done,
    /// Failed.
    Failed,
    /// Wrong usage.
    Usage,
    /// Refused: by the broker, or because what is asked does not fit what there is.
    Refused,
    /// The broker cannot be reached.
    Unreachable,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(match exit {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::Refused => 3,
            Exit::Unreachable => 4,
        })
    }
}

/// A command that could not do its work.
#[derive(Debug)]
pub struct Failure {
    exit: Exit,
    message: String,
}

impl Failure {
    fn new(exit: Exit, message: impl Into<String>) -> Self {
        Failure { exit, message: message.into() }
    }

    fn failed(error: impl std::fmt::Display) -> Self {
        Failure::new(Exit::Failed, error.to_string())
    }

    /// No broker answers at this endpoint.
    fn unreachable(endpoint: impl std::fmt::Display, why: impl std::fmt::Display) -> Self {
        let message = format!(
            "cannot reach millrace at {endpoint}: {why}; does it run there? --endpoint is its --http-listen"
        );
        Failure::new(Exit::Unreachable, message)
    }
}

/// A change broker for PostgreSQL that speaks Kafka.
#[derive(Debug, Parser)]
#[command(name = "millrace", version, about, arg_required_else_help = true)]
struct Arguments {
    /// What is logged, as in RUST_LOG: error, warn, info, debug, or per module
    #[arg(long, global = true, env = "MILLRACE_LOG", default_value = "info")]
    log: String,
    /// How it is logged
    #[arg(long, global = true, env = "MILLRACE_LOG_FORMAT", default_value = "text", value_parser = ["text", "json"])]
    log_format: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Capture a database's changes and serve them: makes a task if there is none, starts it, says how to consume it
    Up(up::Up),
    /// Serve the tasks that a data directory holds, and those that its file names
    Serve(serve::Serve),
    /// Check or show the settings that `serve` would have
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// See and change the tasks of a running broker
    Task(task::TaskArguments),
    /// Print what is in a topic, as it comes
    Consume(consume::Consume),
    /// Check whether a database can be captured, and say what to mend
    Precheck(precheck::Precheck),
    /// Measure Millrace on this machine
    #[cfg(feature = "bench")]
    Bench(crate::bench::Bench),
    /// Measure Millrace on this machine (this binary was built without it)
    #[cfg(not(feature = "bench"))]
    #[command(disable_help_flag = true)]
    Bench {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
        _arguments: Vec<String>,
    },
}

/// Parses the command line and runs the command.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Err(message) = start_logging(&arguments) {
        eprintln!("millrace: --log: {message}");
        return Exit::Usage.into();
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("millrace: cannot start: {error}");
            return Exit::Failed.into();
        }
    };
    let ended = runtime.block_on(async {
        match arguments.command {
            Command::Up(up) => up.run().await,
            Command::Serve(serve) => serve.run().await,
            Command::Config(config) => config.run().await,
            Command::Task(task) => task.run().await,
            Command::Consume(consume) => consume.run().await,
            Command::Precheck(precheck) => precheck.run().await,
            #[cfg(feature = "bench")]
            Command::Bench(bench) => bench.run().await.map_err(Failure::failed),
            #[cfg(not(feature = "bench"))]
            Command::Bench { .. } => Err(Failure::new(
                Exit::Usage,
                "this binary was built without benchmarks; build it with `cargo build --release --features bench`",
            )),
        }
    });
    // What still blocks, a disk perhaps, is not waited for: all that counts is durable.
    runtime.shutdown_timeout(Duration::from_secs(5));
    match ended {
        Ok(()) => Exit::Done.into(),
        Err(failure) => {
            eprintln!("millrace: {}", failure.message);
            failure.exit.into()
        }
    }
}

/// Prints a line. That nobody reads on, as behind `| head`, is no reason to stop.
fn say(text: impl std::fmt::Display) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

fn start_logging(arguments: &Arguments) -> Result<(), String> {
    let filter = EnvFilter::try_new(&arguments.log).map_err(|error| error.to_string())?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    if arguments.log_format == "json" {
        builder.json().init()
    } else {
        builder.init()
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::config::{Config, SETTINGS};

    #[test]
    fn every_flag_and_variable_is_on_the_page_for_operators() {
        let page = include_str!("../../docs/operations.md");
        let mut arguments = Arguments::command();
        arguments.build();
        let named = |command: &str| arguments.find_subcommand(command).unwrap();
        let task = named("task");
        let commands = ["up", "serve", "consume", "precheck"].map(named);
        for command in commands.into_iter().chain([task]).chain(task.get_subcommands()) {
            let flags = command.get_arguments().filter_map(|argument| argument.get_long());
            for flag in flags.filter(|flag| !["help", "version"].contains(flag)) {
                assert!(page.contains(&format!("`--{flag}`")), "--{flag} of {}", command.get_name());
            }
            for variable in command.get_arguments().filter_map(|argument| argument.get_env()) {
                let variable = variable.to_str().unwrap();
                assert!(page.contains(&format!("`{variable}`")), "{variable} of {}", command.get_name());
            }
        }
    }

    #[test]
    fn every_setting_is_on_the_page_for_operators_with_its_flag_variable_and_default() {
        let page = include_str!("../../docs/operations.md");
        for setting in SETTINGS {
            let line = page.lines().find(|line| line.starts_with(&format!("| `{}` |", setting.key)));
            let line = line.unwrap_or_else(|| panic!("{} is not on the page", setting.key));
            assert!(line.contains(&format!("`--{}`<br>`{}`", setting.flag, setting.variable())), "{line}");
            let default = setting.render(&Config::default());
            let default = default.as_ref().map_or("", |default| default.trim_matches('"'));
            assert!(line.contains(&format!("| `{default}` |")) || default.is_empty(), "{line}");
        }
    }
}
