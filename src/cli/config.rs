//! The settings' file and flags, which several commands take, and `millrace config`, which checks and shows them.

use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, Subcommand};

use super::{Exit, Failure, say};
use crate::config::{self, Config, File, Loaded, SETTINGS, Setting, Value};

/// Where the broker's settings come from.
#[derive(Debug, Args)]
pub struct ConfigArguments {
    /// A file with settings
    #[arg(long = "config", env = "MILLRACE_CONFIG", value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    flags: SettingFlags,
}

impl ConfigArguments {
    /// Reads all settings.
    ///
    /// # Errors
    /// [`Exit::Usage`], with all that is wrong.
    pub async fn load(&self) -> Result<Loaded, Failure> {
        let usage = |message: String| Failure::new(Exit::Usage, message);
        let file = match &self.file {
            None => None,
            Some(path) => {
                let name = path.display().to_string();
                let text = tokio::fs::read_to_string(path).await;
                let text =
                    text.map_err(|error| usage(format!("cannot read the settings in {name}: {error}")))?;
                Some(File { name, text })
            }
        };
        // A variable that is not UTF-8 fits no setting, which its replacement characters make plain.
        let text = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
        let variables: Vec<_> = std::env::vars_os().map(|(name, value)| (text(name), text(value))).collect();
        config::load(file.as_ref(), &variables, &self.flags.0).map_err(|errors| usage(errors.to_string()))
    }
}

/// The flags of the table of settings, as they were given.
#[derive(Debug, Clone, Default)]
struct SettingFlags(Vec<(&'static Setting, String)>);

impl Args for SettingFlags {
    fn augment_args(command: Command) -> Command {
        command.args(SETTINGS.iter().map(flag))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for SettingFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = SettingFlags::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0 = SETTINGS
            .iter()
            .filter_map(|setting| {
                let given = match setting.value {
                    Value::Switch { .. } => matches.get_flag(setting.key).then(|| true.to_string()),
                    _ => matches.get_one::<String>(setting.key).cloned(),
                };
                Some((setting, given?))
            })
            .collect();
        Ok(())
    }
}

/// The flag of a setting. What it is given is checked with everything else, by [`config::load`].
fn flag(setting: &'static Setting) -> Arg {
    let default = match setting.render(&Config::default()) {
        Some(default) => format!(" [default: {}]", default.trim_matches('"')),
        None => String::new(),
    };
    let help = format!("{} [env: {}]{default}", setting.about, setting.variable());
    let flag = Arg::new(setting.key).long(setting.flag).help(help);
    match &setting.value {
        Value::Switch { .. } => flag.action(ArgAction::SetTrue),
        Value::Number { unit, .. } => flag.value_name(*unit).allow_negative_numbers(true),
        Value::Text { form, .. } => flag.value_name(*form),
    }
}

/// `millrace config`
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Say whether the settings are right, or all that is wrong with them
    Check(ConfigArguments),
    /// Print the settings, in the form of the file, and where each comes from
    Show(ConfigArguments),
}

impl ConfigCommand {
    pub async fn run(self) -> Result<(), Failure> {
        match self {
            ConfigCommand::Check(arguments) => {
                arguments.load().await?;
                say("ok");
            }
            ConfigCommand::Show(arguments) => say(show(&arguments.load().await?)),
        }
        Ok(())
    }
}

fn show(loaded: &Loaded) -> String {
    let mut text = String::new();
    let mut section = "";
    for setting in SETTINGS {
        if setting.section() != section {
            section = setting.section();
            text.push_str(&format!("\n[{section}]\n"));
        }
        let name = setting.key.rsplit('.').next().unwrap_or_default();
        text.push_str(&match setting.render(&loaded.config) {
            Some(value) => format!("{name} = {value}  # {}\n", loaded.origin(setting)),
            None => format!("# {name} is not set\n"),
        });
    }
    text
}
