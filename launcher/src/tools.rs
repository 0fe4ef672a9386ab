//! Commands beside the server, such as `gridwork run-batch`. They are Python, in the package `gridwork`.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::programs::{ProgramNotFound, Wanted};

/// Names of the commands.
const COMMANDS: [&str; 5] = ["env", "check", "run-batch", "download", "convert"];

/// A command that could not be run.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    #[error(transparent)]
    Server(#[from] ProgramNotFound),
    #[error("`gridwork {command}` needs the Python of {server}, and there is none beside it")]
    NoPython { command: String, server: PathBuf },
    #[error("cannot start {python}: {source}", python = .python.display())]
    Start { python: PathBuf, source: io::Error },
}

/// Becomes the command that `args` name; returns if they name none, or with the reason why it cannot be run.
pub fn become_tool(args: &[OsString]) -> Result<(), ToolError> {
    let Some(command) = args.get(1).and_then(|word| word.to_str()) else {
        return Ok(());
    };
    if !COMMANDS.contains(&command) {
        return Ok(());
    }
    let given = std::env::var("GRIDWORK_SERVER").ok();
    let server = Wanted::server_of(given.as_deref()).find()?;
    let program = PathBuf::from(server.first().cloned().unwrap_or_default());
    let Some(python) = python_of(&program) else {
        return Err(ToolError::NoPython {
            command: command.to_owned(),
            server: program,
        });
    };
    let mut tool = Command::new(&python);
    tool.args(["-m", "gridwork"])
        .args(args.iter().skip(1))
        .env("PYTHONUNBUFFERED", "1");
    if let Ok(this) = std::env::current_exe() {
        tool.env("GRIDWORK_BIN", this);
    }
    let source = tool.exec();
    Err(ToolError::Start { python, source })
}

/// The Python that runs a program: the program itself, the one beside it, or the one that its first line names.
fn python_of(program: &Path) -> Option<PathBuf> {
    let is_python = |path: &Path| {
        let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
        name.starts_with("python")
    };
    if is_python(program) {
        return Some(program.to_owned());
    }
    let beside = program.with_file_name("python3");
    if beside.is_file() {
        return Some(beside);
    }
    let text = std::fs::read(program).ok()?;
    let line = text
        .strip_prefix(b"#!")?
        .split(|byte| *byte == b'\n')
        .next()?;
    let named = PathBuf::from(String::from_utf8_lossy(line).trim());
    is_python(&named).then_some(named)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_python_of_a_script_is_beside_it_or_in_its_first_line() {
        let folder = tempfile::tempdir().unwrap();
        let server = folder.path().join("gridwork-server");
        std::fs::write(&server, "#!/opt/bin/python3.11\nimport sys\n").unwrap();
        assert_eq!(python_of(&server), Some("/opt/bin/python3.11".into()));
        std::fs::write(&server, "#!/bin/sh\n").unwrap();
        assert_eq!(python_of(&server), None);
        let beside = folder.path().join("python3");
        std::fs::write(&beside, "").unwrap();
        assert_eq!(python_of(&server), Some(beside));
        assert_eq!(
            python_of(Path::new("/a/python3.12")),
            Some("/a/python3.12".into())
        );
    }

    #[test]
    fn other_words_are_left_to_the_server() {
        for args in [
            &["gridwork"][..],
            &["gridwork", "serve"],
            &["gridwork", "--env"],
        ] {
            let args: Vec<OsString> = args.iter().map(Into::into).collect();
            become_tool(&args).unwrap();
        }
    }
}
