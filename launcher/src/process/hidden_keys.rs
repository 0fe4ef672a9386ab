//! Keeps API keys out of the list of processes, which every user of a machine can read.
//!
//! A program cannot change its own command line there. It can start itself anew in the same process, with the keys in its
//! environment, which only its user can read.

use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

const FLAG: &[u8] = b"--api-key";
const VARIABLE: &str = "API_KEY";

/// Starts this program anew without keys on its command line, if there are some. Returns only if there are none, or with
/// the reason why that failed. `args`: the whole command line.
pub fn hide(args: &[OsString]) -> io::Result<()> {
    // Then no variable is read: the program that starts the server says everything by flags.
    if args.iter().any(|word| word == "--parent-link") {
        return Ok(());
    }
    match without_keys(args) {
        None => Ok(()),
        Some((args, keys)) => start_anew(&args, &keys).map(|never| match never {}),
    }
}

fn start_anew(args: &[OsString], keys: &OsStr) -> io::Result<Infallible> {
    let mut command = Command::new(std::env::current_exe()?);
    if let [name, rest @ ..] = args {
        command.arg0(name).args(rest);
    }
    Err(command.env(VARIABLE, keys).exec())
}

/// The command line without keys, and the keys, separated by commas; `None` if it has none, or if one lacks its value.
fn without_keys(args: &[OsString]) -> Option<(Vec<OsString>, OsString)> {
    let mut words = args.iter();
    let mut kept: Vec<OsString> = words.next().cloned().into_iter().collect();
    let mut keys: Vec<&[u8]> = Vec::new();
    while let Some(word) = words.next() {
        if word == "--" {
            kept.push(word.clone());
            kept.extend(words.cloned());
            break;
        }
        let bytes = word.as_bytes();
        let name_end = bytes.iter().position(|byte| *byte == b'=');
        let name = &bytes[..name_end.unwrap_or(bytes.len())];
        // Underscores stand for hyphens, as in other servers.
        let is_key = name.len() == FLAG.len()
            && name
                .iter()
                .zip(FLAG)
                .all(|(given, wanted)| given == wanted || (*given == b'_' && *wanted == b'-'));
        match (is_key, name_end) {
            (false, _) => kept.push(word.clone()),
            (true, Some(end)) => keys.push(&bytes[end + 1..]),
            (true, None) => keys.push(words.next()?.as_bytes()),
        }
    }
    let joined = keys.join(&b',');
    (!keys.is_empty()).then(|| (kept, OsStr::from_bytes(&joined).to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hidden(line: &str) -> Option<(String, String)> {
        let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        let (args, keys) = without_keys(&words)?;
        let args: Vec<_> = args.iter().map(|word| word.to_string_lossy()).collect();
        Some((args.join(" "), keys.to_string_lossy().into_owned()))
    }

    #[test]
    fn keys_leave_the_command_line_in_every_spelling() {
        for line in [
            "gridwork --api-key a --port 1 --api-key=b,c",
            "gridwork --api_key a --port 1 --api_key=b,c",
        ] {
            let expected = ("gridwork --port 1".to_owned(), "a,b,c".to_owned());
            assert_eq!(hidden(line), Some(expected), "{line}");
        }
        let empty = ("gridwork".to_owned(), String::new());
        assert_eq!(hidden("gridwork --api-key="), Some(empty));
    }

    #[test]
    fn other_command_lines_stay_as_they_are() {
        for line in [
            "gridwork --port 1",
            "gridwork --api-key-file f",
            "gridwork -- --api-key a",
            "gridwork --port 1 --api-key",
        ] {
            assert_eq!(hidden(line), None, "{line}");
        }
    }
}
