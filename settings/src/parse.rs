//! Reads the command line and the environment.

use std::collections::HashMap;
use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command, CommandFactory, FromArgMatches};

use crate::Cli;
use crate::rewrite::{Rewritten, rewrite};

/// Parses and validates the command line and the environment.
///
/// A variable of ours that is set but empty counts as not set, since compose files pass variables so, and is removed.
/// `API_KEY` is the exception: a server that is meant to have a key must not be open.
/// With `--parent-link` no variable is read: the program that starts the server says everything by flags.
/// Ends the process for `--help`, `--version` and wrong values, after saying what was wrong.
pub fn parse_command_line() -> Cli {
    parse_words(std::env::args_os().collect()).unwrap_or_else(|error| error.exit())
}

/// Parses and validates `args`, of which the first is the program's name, as [`parse_command_line`] does its own.
///
/// # Errors
///
/// clap's: the message names the flag, the value and the values that are allowed.
pub fn parse_words(args: Vec<OsString>) -> Result<Cli, clap::Error> {
    if args.iter().any(|arg| arg == "--parent-link") {
        return try_parse(args);
    }
    let command = Cli::command();
    for name in command.get_arguments().filter_map(|arg| arg.get_env()) {
        if name != "API_KEY" && std::env::var_os(name).is_some_and(|value| value.is_empty()) {
            // SAFETY: called first thing in `main`, before any other thread exists.
            unsafe { std::env::remove_var(name) };
        }
    }
    parse(command, args)
}

/// Parses `args`, of which the first is the program's name, without looking at the environment.
///
/// # Errors
///
/// clap's: the message names the flag, the value and the values that are allowed.
pub fn try_parse(args: impl IntoIterator<Item = impl Into<OsString>>) -> Result<Cli, clap::Error> {
    let command = Cli::command().mut_args(|arg| arg.env(None::<&str>));
    parse(command, args.into_iter().map(Into::into).collect())
}

fn parse(mut command: Command, args: Vec<OsString>) -> Result<Cli, clap::Error> {
    let Rewritten {
        args,
        warnings,
        typed,
    } = match rewrite(&command, args) {
        Ok(rewritten) => rewritten,
        Err(message) => return Err(command.error(ErrorKind::UnknownArgument, message)),
    };
    let parsed = command
        .try_get_matches_from_mut(&args)
        .and_then(|matches| Cli::from_arg_matches(&matches));
    match parsed {
        Ok(mut cli) => match cli.validate() {
            Ok(()) => {
                let old = cli.old_names.max_input_length.take();
                cli.limits.max_input_tokens = cli.limits.max_input_tokens.or(old);
                cli.warnings = warnings;
                Ok(cli)
            }
            Err(message) => Err(command.error(ErrorKind::ValueValidation, message)),
        },
        Err(error) => Err(name_the_variable(
            &command,
            name_what_was_typed(&command, error, &typed),
            &args,
        )),
    }
}

/// Adds the name of another server by which a refused flag was given.
fn name_what_was_typed(
    command: &Command,
    mut error: clap::Error,
    typed: &HashMap<&str, String>,
) -> clap::Error {
    let Some(ContextValue::String(shown)) = error.get(ContextKind::InvalidArg) else {
        return error;
    };
    let arg = command
        .get_arguments()
        .find(|arg| arg.to_string() == *shown);
    if let Some(typed) = arg.and_then(|arg| typed.get(arg.get_long()?)) {
        // clap puts the whole in quotes.
        let shown = format!("{shown}', given as '{typed}");
        error.insert(ContextKind::InvalidArg, ContextValue::String(shown));
    }
    error
}

/// Says so when a refused value came from an environment variable: the user typed no such flag.
fn name_the_variable(command: &Command, mut error: clap::Error, args: &[OsString]) -> clap::Error {
    if !matches!(
        error.kind(),
        ErrorKind::InvalidValue | ErrorKind::ValueValidation
    ) {
        return error;
    }
    let Some(ContextValue::String(shown)) = error.get(ContextKind::InvalidArg) else {
        return error;
    };
    let arg = command
        .get_arguments()
        .find(|arg| arg.to_string() == *shown);
    let Some((long, variable)) = arg.and_then(|arg| Some((arg.get_long()?, arg.get_env()?))) else {
        return error;
    };
    let flag = format!("--{long}");
    let typed = args
        .iter()
        .any(|given| given.to_string_lossy().split('=').next() == Some(&flag));
    if !typed && std::env::var_os(variable).is_some() {
        // clap puts the whole in quotes.
        let shown = format!(
            "{shown}' from the environment variable '{}",
            variable.to_string_lossy()
        );
        error.insert(ContextKind::InvalidArg, ContextValue::String(shown));
    }
    error
}
