//! Writes pages that are generated from the code, or compares them with what the code says now.

use std::path::Path;
use std::process::ExitCode;

/// Does what the arguments of a generator of pages say: writes `text` to the file that they name, or with `--check`
/// compares the file with `text`, and prints the first difference.
///
/// A difference, an unreadable file and a wrong argument give a non-zero exit code.
pub fn write_or_check(args: impl IntoIterator<Item = String>, text: &str) -> ExitCode {
    let (flags, paths): (Vec<_>, Vec<_>) = args.into_iter().partition(|arg| arg.starts_with("--"));
    let ([path], true) = (&paths[..], flags.iter().all(|flag| flag == "--check")) else {
        eprintln!("usage: GENERATOR [--check] PAGE");
        return ExitCode::FAILURE;
    };
    let result = match flags.is_empty() {
        true => std::fs::write(path, text).map_err(|error| format!("{path}: {error}")),
        false => check(Path::new(path), text),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn check(path: &Path, text: &str) -> Result<(), String> {
    let shown = path.display();
    let found = std::fs::read_to_string(path)
        .map_err(|error| format!("{shown}: {error}; run `make docs`"))?;
    match difference(&found, text) {
        None => Ok(()),
        Some(lines) => Err(format!(
            "{shown} is not what the code says; run `make docs`\n{lines}"
        )),
    }
}

/// The first lines that differ, as a diff shows them.
fn difference(found: &str, expected: &str) -> Option<String> {
    let (mut olds, mut news) = (found.lines(), expected.lines());
    for number in 1.. {
        let (old, new) = (olds.next(), news.next());
        if old != new {
            let line = |sign, text: Option<&str>| match text {
                Some(text) => format!("{sign} {text}\n"),
                None => String::new(),
            };
            return Some(format!(
                "@@ line {number} @@\n{}{}",
                line('-', old),
                line('+', new)
            ));
        }
        if old.is_none() {
            break;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_difference_is_shown() {
        assert_eq!(difference("a\nb\n", "a\nb\n"), None);
        assert_eq!(
            difference("a\nb\n", "a\nc\n").as_deref(),
            Some("@@ line 2 @@\n- b\n+ c\n")
        );
        assert_eq!(
            difference("a\n", "a\nc\n").as_deref(),
            Some("@@ line 2 @@\n+ c\n")
        );
    }

    #[test]
    fn a_page_that_differs_says_what_to_run() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("page.md");
        assert!(
            check(&path, "a\n")
                .expect_err("no page")
                .contains("make docs")
        );
        std::fs::write(&path, "a\n").expect("a page");
        assert_eq!(check(&path, "a\n"), Ok(()));
        assert!(
            check(&path, "b\n")
                .expect_err("a difference")
                .contains("make docs")
        );
    }
}
