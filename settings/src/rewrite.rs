//! Turns the words that people type into the flags of [`crate::flags`]: `serve MODEL`, and flags of other servers.

use std::collections::HashMap;
use std::ffi::OsString;
use std::iter::Peekable;

use clap::Command;
use clap::builder::ValueRange;

use crate::flags::spellings::{self, Meaning, Spelling};

/// A command line in flags of ours.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Rewritten {
    pub args: Vec<OsString>,
    /// Flags that have no effect, with the reason.
    pub warnings: Vec<String>,
    /// Names of other servers that were typed, by our flag.
    pub typed: HashMap<&'static str, String>,
}

/// Rewrites a command line, of which the first word is the program's name.
///
/// # Errors
///
/// A flag of another server that means something else here: names it, and says what to do.
pub fn rewrite(command: &Command, args: Vec<OsString>) -> Result<Rewritten, String> {
    let mut words = args.into_iter().peekable();
    let mut done = Rewritten::default();
    done.args.extend(words.next());
    let serves = words.peek().is_some_and(|word| word == "serve");
    if serves {
        words.next();
    }
    let mut wants_model = serves;
    while let Some(word) = words.next() {
        let text = word.to_str().unwrap_or_default();
        if text == "--" {
            done.args.push(word);
            done.args.extend(words);
            break;
        }
        let Some(flag) = Typed::read(text) else {
            let is_model = wants_model && !text.starts_with('-');
            if is_model {
                wants_model = false;
                done.args.push("--model-id".into());
            }
            done.args.push(word.clone());
            if let Some(values) = short_values(command, text) {
                take_values(values, &mut words, &mut done.args);
            }
            continue;
        };
        if let Some(values) = num_values(command, &flag) {
            done.args.push(flag.with_hyphens(&word));
            take_values(values, &mut words, &mut done.args);
            continue;
        }
        match spellings::find(&flag.name) {
            Some((spelling, negated)) => {
                let value = match (takes_value(spelling), &flag.value) {
                    (true, None) => words.next().and_then(|word| word.into_string().ok()),
                    (_, value) => value.clone(),
                };
                apply(spelling, negated, &flag.name, value, &mut done)?;
            }
            None => done.args.push(word),
        }
    }
    Ok(done)
}

/// A flag as it was typed.
struct Typed {
    /// Name without dashes, with hyphens.
    name: String,
    value: Option<String>,
}

impl Typed {
    fn read(word: &str) -> Option<Self> {
        // vLLM has this short form.
        let word = if word == "-tp" { "--tp" } else { word };
        let (name, value) = match word.strip_prefix("--")?.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (word.strip_prefix("--")?, None),
        };
        Some(Self {
            name: name.replace('_', "-"),
            value,
        })
    }

    fn with_hyphens(&self, word: &OsString) -> OsString {
        match &self.value {
            Some(value) => format!("--{}={value}", self.name).into(),
            None if word.to_str().is_some_and(|word| word.contains('_')) => {
                format!("--{}", self.name).into()
            }
            None => word.clone(),
        }
    }
}

/// Moves the words that are values of the flag before them.
fn take_values(
    values: ValueRange,
    words: &mut Peekable<impl Iterator<Item = OsString>>,
    args: &mut Vec<OsString>,
) {
    let is_flag = |word: &OsString| word.to_str().is_some_and(|word| word.starts_with('-'));
    for taken in 0..values.max_values() {
        let is_value =
            taken < values.min_values() || words.peek().is_some_and(|next| !is_flag(next));
        match is_value.then(|| words.next()).flatten() {
            Some(value) => args.push(value),
            None => break,
        }
    }
}

/// Number of words that follow a short flag (`-p`).
fn short_values(command: &Command, word: &str) -> Option<ValueRange> {
    let mut letters = word.strip_prefix('-')?.chars();
    let (letter, None) = (letters.next()?, letters.next()) else {
        return None;
    };
    let mut args = command.get_arguments();
    let arg = args.find(|arg| arg.get_short() == Some(letter))?;
    arg.get_action()
        .takes_values()
        .then(|| arg.get_num_args().unwrap_or_else(|| 1.into()))
}

/// Number of words that follow a flag of ours as its values; `None`: it is not one.
fn num_values(command: &Command, flag: &Typed) -> Option<ValueRange> {
    if matches!(flag.name.as_str(), "help" | "version") {
        return Some(0.into());
    }
    let mut args = command.get_arguments();
    let arg = args.find(|arg| arg.get_long() == Some(&flag.name))?;
    if flag.value.is_some() || arg.is_require_equals_set() || !arg.get_action().takes_values() {
        return Some(0.into());
    }
    Some(arg.get_num_args().unwrap_or_else(|| 1.into()))
}

fn takes_value(spelling: &Spelling) -> bool {
    match spelling.meaning {
        Meaning::Same(_) | Meaning::Values(..) | Meaning::Only(..) => true,
        Meaning::Switch { .. } | Meaning::Always(_) | Meaning::Nothing(_) | Meaning::Refused(_) => {
            false
        }
    }
}

fn apply(
    spelling: &Spelling,
    negated: bool,
    name: &str,
    value: Option<String>,
    done: &mut Rewritten,
) -> Result<(), String> {
    let is_off = || match value.as_deref() {
        None | Some("true" | "True" | "1") => Ok(negated),
        Some("false" | "False" | "0") => Ok(!negated),
        Some(other) => Err(format!("--{name} is true or false. Given: {other}")),
    };
    let needs = || value.clone().ok_or(format!("--{name} needs a value"));
    match spelling.meaning {
        Meaning::Same(flag) => {
            done.args.push(format!("--{flag}={}", needs()?).into());
            done.typed.insert(flag, format!("--{name}"));
        }
        Meaning::Values(flag, values) => {
            let given = needs()?;
            let known = values
                .iter()
                .find(|(theirs, _)| theirs.eq_ignore_ascii_case(&given));
            let Some((_, ours)) = known else {
                let all: Vec<_> = values.iter().map(|(theirs, _)| *theirs).collect();
                return Err(format!(
                    "--{name} {given} has no counterpart here; give {}, or use --{flag}",
                    all.join(", ")
                ));
            };
            done.args.push(format!("--{flag}={ours}").into());
            done.typed.insert(flag, format!("--{name}"));
        }
        Meaning::Switch { on, off } => {
            let words = if is_off()? { off } else { on };
            done.args.extend(words.iter().map(OsString::from));
        }
        Meaning::Always(why) => {
            if is_off()? {
                return Err(format!("--{name} cannot be turned off: {why}; remove it"));
            }
            done.warnings.push(format!("--{name} has no effect: {why}"));
        }
        Meaning::Nothing(why) => done.warnings.push(format!("--{name} has no effect: {why}")),
        Meaning::Only(values, why) => {
            let given = needs()?;
            if !values.contains(&given.as_str()) {
                return Err(format!(
                    "--{name} {given} is not supported: {why}; remove it"
                ));
            }
            done.warnings.push(format!("--{name} has no effect: {why}"));
        }
        Meaning::Refused(hint) => {
            return Err(format!("--{name} is not a flag of this server: {hint}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::flags::spellings::SPELLINGS;
    use crate::{Cli, Dtype, try_parse};

    fn parse(args: &[&str]) -> Result<Cli, String> {
        try_parse([&["gridwork"], args].concat()).map_err(|error| error.to_string())
    }

    #[test]
    fn no_spelling_hides_a_flag_and_all_lead_to_one() {
        let command = Cli::command();
        let is_ours = |name: &str| {
            command
                .get_arguments()
                .any(|arg| arg.get_long() == Some(name))
        };
        let mut seen = Vec::new();
        for spelling in SPELLINGS {
            for name in spelling.names {
                assert!(!is_ours(name), "--{name} is a flag");
                assert!(!seen.contains(name), "--{name} is there twice");
                seen.push(name);
            }
            match spelling.meaning {
                Meaning::Same(flag) | Meaning::Values(flag, _) => assert!(is_ours(flag), "{flag}"),
                Meaning::Switch { on, off } => {
                    for word in [on, off].concat() {
                        parse(&["--model-id", "m", word]).expect(word);
                    }
                }
                _ => {}
            }
        }
    }

    #[test]
    fn serve_takes_a_model_anywhere() {
        for args in [
            &["serve", "m", "--port", "80"][..],
            &["serve", "--port", "80", "m"],
            &["serve", "-p", "80", "m"],
            &["serve", "--trust-remote-code", "m", "-p", "80"],
            &["serve", "--served-model-name", "a", "b", "--port=80", "m"],
            &["--model-id", "m", "--port", "80"],
        ] {
            let cli = parse(args).expect("it is understood");
            assert_eq!(cli.model.model_id.as_deref(), Some("m"), "{args:?}");
        }
        for args in [
            &["serve"][..],
            &["serve", "m", "n"],
            &["serve", "m", "--model-id", "n"],
            &["m"],
        ] {
            parse(args).expect_err("a refusal");
        }
    }

    #[test]
    fn flags_of_other_servers_mean_ours() {
        let cli = parse(&[
            "--model=m",
            "--tensor_parallel_size",
            "2",
            "--max-model-len",
            "4096",
            "--gpu-memory-utilization=0.5",
            "--max_num_seqs=7",
            "--chunked-prefill-size",
            "64",
            "--impl",
            "transformers",
            "--dtype",
            "half",
            "--host",
            "::1",
            "--no-enable-prefix-caching",
            "--enforce-eager",
            "--attention-backend",
            "TRITON_ATTN",
            "--enable-auto-tool-choice",
            "--disable-log-requests",
            "--pp",
            "1",
        ])
        .expect("flags");
        assert_eq!(cli.processes.num_shard, Some(2));
        assert_eq!(cli.limits.max_total_tokens, Some(4096));
        assert_eq!(cli.batching.max_batch_size, 7);
        assert_eq!(cli.batching.max_batch_prefill_tokens, 64);
        assert_eq!(cli.memory.cuda_memory_fraction, 0.5);
        assert_eq!(cli.run.dtype, Dtype::Float16);
        assert_eq!(cli.http.hostname, "::1");
        assert!(cli.batching.disable_prefix_cache);
        assert!(cli.memory.cuda_graphs.expect("sizes").0.is_empty());
        assert_eq!(cli.warnings.len(), 3, "{:?}", cli.warnings);
        let cli = parse(&["--model-id", "m", "--torchao-config", "int8dq"]).expect("flags");
        assert!(cli.run.quantize.is_some());
    }

    #[test]
    fn flags_that_mean_something_else_are_refused_with_the_right_one() {
        for (args, expected) in [
            (&["--quantization", "awq"][..], "--quantize"),
            (&["--seed", "1"], "`seed`"),
            (&["--chat-template", "x.jinja"], "--tokenizer-config-path"),
            (&["--dp-size", "2"], "--num-shard"),
            (&["--no-enable-chunked-prefill"], "cannot be turned off"),
            (&["--torchao-config", "int4wo-128"], "--quantize"),
            (&["--enforce-eager=maybe"], "true or false"),
            (&["--max-model-len"], "needs a value"),
            // The name that was typed stands beside ours.
            (&["--tp", "none"], "--num-shard <N>', given as '--tp'"),
            (&["--tp", "2", "--num-shard", "2"], "--num-shard"),
        ] {
            let message = parse(&[&["--model-id", "m"], args].concat()).expect_err("a refusal");
            assert!(message.contains(expected), "{args:?}: {message}");
            let typed = args[0].split('=').next().expect("a name");
            assert!(message.contains(typed) || args.len() == 4, "{message}");
        }
    }

    #[test]
    fn values_are_not_taken_for_flags() {
        let args = ["--model-id", "m", "--default-prompt", "--model", "--", "x"];
        let words = args.map(OsString::from);
        let words: Vec<_> = ["gridwork".into()].into_iter().chain(words).collect();
        let done = rewrite(&Cli::command(), words.clone()).expect("it is left alone");
        assert_eq!(done.args, words);
    }
}
