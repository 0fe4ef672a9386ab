//! The commands beside the server, and the scripts that complete them and the server's flags in a shell.
//!
//! Python owns the commands but `serve`, `completions` and `health`. `commands.json` lists them: `make docs` writes it.

use std::sync::LazyLock;

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, Command, CommandFactory, ValueHint};
use clap_complete::Shell;
use serde::Deserialize;

use crate::Cli;

/// Shells for which there are scripts.
pub const SHELLS: [&str; 3] = ["bash", "zsh", "fish"];

static TOOLS: LazyLock<Vec<Tool>> = LazyLock::new(|| {
    serde_json::from_str(include_str!("commands.json")).expect("a test reads the file")
});

/// A command that is written in Python.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tool {
    name: String,
    about: String,
    /// Flags of the server are flags of the command, too.
    takes_server_flags: bool,
    values: Vec<Value>,
    flags: Vec<Flag>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Flag {
    /// Without dashes.
    name: String,
    about: String,
    value: Option<Value>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Value {
    name: String,
    choices: Vec<String>,
    is_path: bool,
}

/// True for the name of a command that is written in Python.
pub fn is_tool(name: &str) -> bool {
    TOOLS.iter().any(|tool| tool.name == name)
}

/// The script that completes command lines of `gridwork` in a shell; `None` for a shell that is not in [`SHELLS`].
pub fn completions(shell: &str) -> Option<Vec<u8>> {
    let shell = match shell {
        "bash" => Shell::Bash,
        "zsh" => Shell::Zsh,
        "fish" => Shell::Fish,
        _ => return None,
    };
    let mut script = Vec::new();
    // Bash and fish complete paths by themselves; a value that is declared would be offered by its name in bash.
    let mut command_line = command_line(shell == Shell::Zsh);
    clap_complete::generate(shell, &mut command_line, "gridwork", &mut script);
    Some(script)
}

/// Everything that can be typed after `gridwork`, as completion needs it: without checks and environment variables.
///
/// `has_paths`: with the values of commands that are paths.
fn command_line(has_paths: bool) -> Command {
    let server: Vec<Arg> = Cli::command()
        .get_arguments()
        .filter(|arg| !arg.is_hide_set() && arg.get_long().is_some())
        .map(typed_flag)
        .collect();
    let serve = Command::new("serve")
        .about("Serve a model, the same as --model-id MODEL")
        .args(has_paths.then(|| Arg::new("MODEL").value_hint(ValueHint::AnyPath)))
        .args(server.clone());
    let completions = Command::new("completions")
        .about("Print a script that completes command lines in a shell")
        .arg(Arg::new("SHELL").value_parser(SHELLS));
    let health = Command::new("health")
        .about("Tell whether the server of this machine, or one with the flags given, is ready")
        .args(server.clone());
    Command::new("gridwork")
        .version(env!("CARGO_PKG_VERSION"))
        .disable_help_subcommand(true)
        .args(server.clone())
        .subcommand(serve)
        .subcommands(TOOLS.iter().map(|tool| tool.command(&server, has_paths)))
        .subcommand(completions)
        .subcommand(health)
}

/// A flag of the server: its name, help and values.
fn typed_flag(arg: &Arg) -> Arg {
    let long = arg.get_long().unwrap_or_default().to_owned();
    let long: &'static str = Box::leak(long.into_boxed_str());
    let mut flag = Arg::new(long).long(long).value_hint(arg.get_value_hint());
    if let Some(letter) = arg.get_short() {
        flag = flag.short(letter);
    }
    if let Some(help) = arg.get_help() {
        flag = flag.help(help.clone());
    }
    if !arg.get_action().takes_values() {
        return flag.action(ArgAction::SetTrue);
    }
    if let Some(values) = arg.get_num_args() {
        flag = flag.num_args(values);
    }
    let values = arg.get_possible_values();
    match values.is_empty() {
        true => flag,
        false => flag.value_parser(PossibleValuesParser::new(values)),
    }
}

impl Tool {
    /// The command with its own flags, and those of the server that it takes.
    fn command(&'static self, server: &[Arg], has_paths: bool) -> Command {
        let own = self.flags.iter().map(|flag| {
            let arg = Arg::new(&*flag.name).long(&*flag.name).help(&*flag.about);
            match &flag.value {
                Some(value) => value.describe(arg),
                None => arg.action(ArgAction::SetTrue),
            }
        });
        let is_own = |arg: &Arg| {
            self.flags
                .iter()
                .any(|flag| arg.get_long() == Some(&*flag.name))
        };
        let passed = server
            .iter()
            .filter(|arg| self.takes_server_flags && !is_own(arg));
        let values = self.values.iter().filter(|_| has_paths);
        Command::new(&*self.name)
            .about(&*self.about)
            .args(values.map(|value| value.describe(Arg::new(&*value.name))))
            .args(own)
            .args(passed.cloned())
    }
}

impl Value {
    fn describe(&'static self, arg: Arg) -> Arg {
        let arg = arg.value_name(&*self.name);
        if self.is_path {
            return arg.value_hint(ValueHint::AnyPath);
        }
        match self.choices.is_empty() {
            true => arg,
            false => arg.value_parser(PossibleValuesParser::new(
                self.choices.iter().map(|choice| &**choice),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tools_are_commands_and_the_server_is_none() {
        for name in ["bench", "chat", "check", "run-batch", "env"] {
            assert!(is_tool(name), "{name}");
        }
        for name in ["serve", "completions", "--env", ""] {
            assert!(!is_tool(name), "{name}");
        }
    }

    #[test]
    fn scripts_name_the_commands_and_flags() {
        for shell in SHELLS {
            let script = String::from_utf8(completions(shell).unwrap()).unwrap();
            for word in [
                "run-batch",
                "completions",
                "model-id",
                "shared-prefix-tokens",
                "float32",
            ] {
                assert!(script.contains(word), "{shell}: {word}");
            }
            assert!(!script.contains("disable-custom-kernels"), "{shell}");
        }
        assert!(completions("tcsh").is_none());
    }

    #[test]
    fn the_command_line_holds_together() {
        command_line(true).debug_assert();
        command_line(false).debug_assert();
    }
}
