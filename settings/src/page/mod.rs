//! Writes docs/flags.md: a table of the flags for each heading of the help, and the notes of this folder, which are
//! written by hand. Links in the notes start from docs/.

use clap::{Arg, CommandFactory};

use crate::cli::Cli;
use crate::flags::spellings::{Meaning, SPELLINGS};
use crate::flags::{ALIASES, Effect};

const HEAD: &str = "# Flags of `gridwork`

<!-- `make docs` writes this page from the flags in settings/src/flags and the notes in settings/src/page. -->

Every flag can also be given as the environment variable beside it; a flag wins over its variable. `gridwork --help`
prints the same list.
";

/// Notes that follow the table of a heading.
const NOTES: [(&str, &str); 5] = [
    ("Model", include_str!("model.md")),
    ("HTTP", include_str!("http.md")),
    ("Batching and memory", include_str!("batching.md")),
    ("Device and processes", include_str!("processes.md")),
    ("Output", include_str!("output.md")),
];

/// The whole page.
pub fn flags_page() -> String {
    let mut command = Cli::command();
    command.build();
    let shown: Vec<&Arg> = command
        .get_arguments()
        .filter(|arg| !arg.is_hide_set() && !matches!(arg.get_id().as_str(), "help" | "version"))
        .collect();
    let mut headings: Vec<&str> = Vec::new();
    for heading in shown.iter().filter_map(|arg| arg.get_help_heading()) {
        if !headings.contains(&heading) {
            headings.push(heading);
        }
    }
    let mut page = HEAD.to_owned();
    for heading in headings {
        page += &format!(
            "\n## {heading}\n\n| flag | variable | default | meaning |\n|---|---|---|---|\n"
        );
        let rows = shown
            .iter()
            .filter(|arg| arg.get_help_heading() == Some(heading));
        page.extend(rows.map(|arg| row(arg)));
        let notes = NOTES.iter().find(|(of, _)| *of == heading);
        if let Some((_, notes)) = notes {
            page += &format!("\n{}\n", notes.trim());
        }
    }
    page += &format!("\n{}\n{}", aliases(), spelled());
    page
}

fn row(arg: &Arg) -> String {
    let mut flag = format!("`{}`", cell(&arg.to_string()));
    if let Some(short) = arg.get_short() {
        flag += &format!(", `-{short}`");
    }
    let variable = arg.get_env().map(|name| name.to_string_lossy());
    let variable = variable.map_or(String::new(), |name| format!("`{name}`"));
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    let (mut meaning, described) = match help.split_once(" [default: ") {
        Some((meaning, rest)) => (meaning.to_owned(), rest.strip_suffix(']')),
        None => (help.clone(), None),
    };
    // Switches such as `--flag[=<BOOL>]` set a value too, by an action that takes none.
    let takes_values = arg.get_num_args().is_some_and(|range| range.takes_values());
    let defaults: Vec<_> = arg
        .get_default_values()
        .iter()
        .filter(|_| takes_values)
        .map(|value| format!("`{}`", value.to_string_lossy()))
        .collect();
    let default = match described {
        Some(text) => with_flags_marked(text),
        None => defaults.join(", "),
    };
    let values: Vec<_> = arg
        .get_possible_values()
        .iter()
        .filter(|_| takes_values && !arg.is_hide_possible_values_set())
        .map(|value| format!("`{}`", value.get_name()))
        .collect();
    if !values.is_empty() {
        meaning += &format!("; one of {}", values.join(", "));
    }
    let meaning = with_flags_marked(&meaning);
    format!(
        "| {flag} | {variable} | {} | {} |\n",
        cell(&default),
        cell(&meaning)
    )
}

/// Escapes what would end a cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

/// Puts names of flags into backticks.
fn with_flags_marked(text: &str) -> String {
    let words = text.split(' ').map(|word| {
        let name = word.trim_end_matches([',', ';', '.']);
        match name.starts_with("--") {
            true => format!("`{name}`{}", &word[name.len()..]),
            false => word.to_owned(),
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

/// The chapter about flags of text-generation-inference.
fn aliases() -> String {
    let list = |has_effect: fn(&Effect) -> Option<&'static str>| {
        let rows = ALIASES.iter().filter_map(|alias| {
            let why = has_effect(&alias.effect)?;
            Some(format!(
                "| `--{}` | `{}` | {why} |\n",
                alias.name, alias.variable
            ))
        });
        format!(
            "| flag | variable | reason |\n|---|---|---|\n{}",
            rows.collect::<String>()
        )
    };
    let ignored = list(|effect| match effect {
        Effect::None(why) => Some(why),
        Effect::Refused(_) => None,
    });
    let refused = list(|effect| match effect {
        Effect::Refused(why) => Some(why),
        Effect::None(_) => None,
    });
    format!(
        "{}\n\nAccepted without effect, with a warning that gives the reason:\n\n{ignored}\nRefused, because ignoring \
         them would change a model's answers or its cost; so are TGI's methods of `--quantize`:\n\n{refused}",
        include_str!("tgi.md").trim()
    )
}

/// The chapter about flags of vLLM, SGLang and `transformers serve`.
fn spelled() -> String {
    let mut rows: [String; 3] = Default::default();
    for spelling in SPELLINGS {
        let names: Vec<_> = spelling
            .names
            .iter()
            .map(|name| format!("`--{name}`"))
            .collect();
        let names = names.join(", ");
        let [ours, ignored, refused] = &mut rows;
        match spelling.meaning {
            Meaning::Same(flag) => *ours += &format!("| `--{flag}` | {names} |\n"),
            Meaning::Values(flag, values) => {
                let values: Vec<_> = values
                    .iter()
                    .map(|(theirs, value)| format!("`{theirs}` for `{value}`"))
                    .collect();
                *ours += &format!("| `--{flag}` | {names}: {} |\n", values.join(", "));
            }
            Meaning::Switch { on, .. } => *ours += &format!("| `{}` | {names} |\n", on.join(" ")),
            Meaning::Always(why) | Meaning::Nothing(why) => {
                *ignored += &format!("| {names} | {why} |\n");
            }
            Meaning::Only(values, why) => {
                let values: Vec<_> = values.iter().map(|value| format!("`{value}`")).collect();
                *ignored += &format!("| {names}: {} only | {why} |\n", values.join(", "));
            }
            Meaning::Refused(hint) => *refused += &format!("| {names} | {hint} |\n"),
        }
    }
    let [ours, ignored, refused] = rows;
    format!(
        "{}\n\n| flag | given as |\n|---|---|\n{ours}\nAccepted without effect, with a warning that gives the \
         reason:\n\n| given | reason |\n|---|---|\n{ignored}\nRefused, because they mean something that is not \
         here:\n\n| given | instead |\n|---|---|\n{refused}",
        include_str!("spellings.md").trim()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_have_flag_variable_default_and_meaning() {
        let page = flags_page();
        for row in [
            "| `--port <PORT>`, `-p` | `PORT` | `3000` | Port to listen on |",
            "| `--dtype <DTYPE>` | `DTYPE` | `auto` | Type of weights and activations; auto: the type in the model's \
             config; one of `auto`, `float32`, `bfloat16`, `float16` |",
            "| `--trust-remote-code[=<BOOL>]` | `TRUST_REMOTE_CODE` | `false` | Run Python code that comes with the \
             model |",
            "| `--env`, `-e` |  |  | Print versions, platform and GPU, then end |",
        ] {
            assert!(page.lines().any(|line| line == row), "{row}\n{page}");
        }
        assert!(page.contains("`--generation-config <auto\\|none\\|DIR>`"));
        assert!(page.contains("4096 or twice `--max-concurrent-requests`, as open files allow"));
        assert!(page.contains("| `--ngrok` | `NGROK` |"));
    }

    #[test]
    fn every_heading_has_a_table() {
        let page = flags_page();
        for (heading, _) in NOTES {
            assert!(page.contains(&format!("\n## {heading}\n")), "{heading}");
        }
    }
}
