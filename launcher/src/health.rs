//! `gridwork health`: asks a server on this machine whether it is ready, for containers and scripts that have no HTTP
//! client.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use crate::supervisor::{Answer, RouterProbe};

/// Maximum wait for an answer.
const PATIENCE: Duration = Duration::from_secs(4);
const PROGRAM: &str = "gridwork";

/// A server that is not ready, or that cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum HealthError {
    #[error(
        "no gridwork runs here; give the flags by which it is reached, such as `gridwork health --port 3000`"
    )]
    NoServer,
    /// The message of the parser, which names the flag and the values that are allowed.
    #[error("{0}")]
    Flags(String),
    #[error("cannot start: {0}")]
    Start(io::Error),
    #[error("nobody listens at {0}")]
    Unreachable(String),
    #[error("{0} gives no answer")]
    Silent(String),
    #[error("{url} is not ready: {reason}")]
    NotReady { url: String, reason: String },
}

/// Asks the server with these flags; without any, the first one that runs on this machine. Returns its URL if it is
/// ready.
pub fn check(flags: &[OsString]) -> Result<String, HealthError> {
    let mut words: Vec<OsString> = match flags {
        // A server has a model, whichever it is.
        [_, ..] => [PROGRAM, "--model-id", "any"]
            .map(OsString::from)
            .into_iter()
            .chain(flags.iter().cloned())
            .collect(),
        [] => first_server(Path::new("/proc")).ok_or(HealthError::NoServer)?,
    };
    // The server's own keys are not on its command line, and flags that need some stay there. None is sent.
    words.push("--api-key=none".into());
    let cli = gridwork_settings::parse_words(words).map_err(|error| {
        let text = error.to_string();
        HealthError::Flags(text.trim_start_matches("error: ").trim_end().to_owned())
    })?;
    let probe = RouterProbe::of(&cli.http);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(HealthError::Start)?;
    let url = probe.url();
    let answer = runtime.block_on(probe.ask(PATIENCE));
    runtime.shutdown_background();
    match answer {
        Answer::Ready => Ok(url),
        Answer::Unreachable => Err(HealthError::Unreachable(url)),
        Answer::Silent => Err(HealthError::Silent(url)),
        Answer::Busy(reason) | Answer::Failed(reason) => Err(HealthError::NotReady { url, reason }),
    }
}

/// The command line of the launcher with the smallest process id.
fn first_server(proc: &Path) -> Option<Vec<OsString>> {
    let mut found: Vec<(u32, Vec<OsString>)> = fs::read_dir(proc)
        .ok()?
        .flatten()
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let line = fs::read(entry.path().join("cmdline")).ok()?;
            Some((pid, words(&line)?))
        })
        .collect();
    found.sort_by_key(|(pid, _)| *pid);
    found.into_iter().map(|(_, words)| words).next()
}

/// The words of a process, if it is a launcher that serves.
fn words(line: &[u8]) -> Option<Vec<OsString>> {
    let line = line.strip_suffix(b"\0").unwrap_or(line);
    let words: Vec<OsString> = line
        .split(|byte| *byte == 0)
        .map(|word| OsStr::from_bytes(word).to_owned())
        .collect();
    let program = Path::new(words.first()?).file_name();
    let is_this = words.get(1).is_some_and(|word| word == "health");
    (program == Some(OsStr::new(PROGRAM)) && !is_this).then_some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(proc: &Path, pid: u32, line: &str) {
        let folder = proc.join(pid.to_string());
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("cmdline"), line.replace(' ', "\0") + "\0").unwrap();
    }

    #[test]
    fn the_first_launcher_that_serves_is_found() {
        let proc = tempfile::tempdir().unwrap();
        assert_eq!(first_server(proc.path()), None);
        process(proc.path(), 1, "/sbin/docker-init -- gridwork --port 80");
        process(proc.path(), 5, "/opt/bin/gridwork health");
        process(proc.path(), 30, "gridwork --port 30");
        process(proc.path(), 7, "/opt/bin/gridwork --port 7");
        fs::create_dir(proc.path().join("self")).unwrap();
        let expected = ["/opt/bin/gridwork", "--port", "7"].map(OsString::from);
        assert_eq!(first_server(proc.path()).unwrap(), expected);
    }

    #[test]
    fn bad_flags_are_named() {
        let error = check(&["--port".into(), "none".into()]).unwrap_err();
        assert!(error.to_string().contains("--port"), "{error}");
    }

    #[test]
    fn limits_of_keys_need_no_key_here() {
        let port = crate::process::sockets::free_port().unwrap().to_string();
        let flags = ["--port", &port, "--max-requests-per-key", "2"].map(OsString::from);
        let error = check(&flags).unwrap_err().to_string();
        assert!(error.starts_with("nobody listens"), "{error}");
    }

    #[test]
    fn nobody_listening_is_told_with_the_address() {
        let port = crate::process::sockets::free_port().unwrap();
        let flags = ["--hostname", "127.0.0.1", "--port", &port.to_string()].map(OsString::from);
        let error = check(&flags).unwrap_err().to_string();
        assert_eq!(error, format!("nobody listens at http://127.0.0.1:{port}"));
    }
}
