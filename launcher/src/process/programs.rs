//! Finds the programs that the launcher starts.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use gridwork_settings::Processes;

/// A program that was not found.
#[derive(Debug, thiserror::Error)]
#[error("{program} was not found in {}; install it, or name it with {flag}", .tried.join(", "))]
pub struct ProgramNotFound {
    program: &'static str,
    flag: &'static str,
    tried: Vec<String>,
}

/// A program to find.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    pub name: &'static str,
    /// Flag that names it, for messages.
    pub flag: &'static str,
    /// Value of the flag or its variable: a path, a name in PATH, or a command with arguments.
    pub given: Option<&'a str>,
    /// True if it may lie in the Python environment of a source checkout.
    pub in_venv: bool,
}

impl<'a> Wanted<'a> {
    /// The program of the shards, which also prepares models.
    pub fn server(processes: &'a Processes) -> Self {
        Self::server_of(processes.server_command.as_deref())
    }

    /// The same, where `given` is the value of its flag or variable.
    pub fn server_of(given: Option<&'a str>) -> Self {
        Self {
            name: "gridwork-server",
            flag: "--server-command",
            given,
            in_venv: true,
        }
    }

    /// The program of the router.
    pub fn router(processes: &'a Processes) -> Self {
        Self {
            name: "gridwork-router",
            flag: "--router-command",
            given: processes.router_command.as_deref(),
            in_venv: false,
        }
    }

    /// Returns the program and its first arguments. Places, in order: the flag's value; beside this executable; PATH;
    /// `.venv/bin` of the folders above this executable.
    pub fn find(&self) -> Result<Vec<String>, ProgramNotFound> {
        let executable = std::env::current_exe().ok();
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path: Vec<PathBuf> = std::env::split_paths(&path).collect();
        self.find_from(executable.as_deref(), &path)
    }

    fn find_from(
        &self,
        executable: Option<&Path>,
        path: &[PathBuf],
    ) -> Result<Vec<String>, ProgramNotFound> {
        let mut tried = Vec::new();
        if let Some(given) = self.given {
            if let Some(found) = find_given(given, path) {
                return Ok(found);
            }
            tried.push(given.to_owned());
            return Err(self.not_found(tried));
        }
        let folder = executable.and_then(Path::parent);
        let beside = folder.map(|folder| folder.join(self.name));
        let in_path = path.iter().map(|folder| folder.join(self.name));
        let above = folder.into_iter().flat_map(Path::ancestors);
        let in_venv = above
            .filter(|_| self.in_venv)
            .map(|folder| folder.join(".venv/bin").join(self.name));
        for candidate in beside.iter().cloned().chain(in_path).chain(in_venv) {
            if is_program(&candidate) {
                return Ok(vec![candidate.to_string_lossy().into_owned()]);
            }
        }
        tried.extend(beside.map(|path| path.display().to_string()));
        tried.push("PATH".to_owned());
        if self.in_venv {
            tried.push(format!(".venv/bin/{} above this program", self.name));
        }
        Err(self.not_found(tried))
    }

    fn not_found(&self, tried: Vec<String>) -> ProgramNotFound {
        ProgramNotFound {
            program: self.name,
            flag: self.flag,
            tried,
        }
    }
}

/// Reads `given` as the path of a program, else as a command with arguments.
fn find_given(given: &str, path: &[PathBuf]) -> Option<Vec<String>> {
    let whole = resolve(given, path).map(|program| vec![program]);
    whole.or_else(|| {
        let mut words = given.split_whitespace().map(str::to_owned);
        let program = resolve(&words.next()?, path)?;
        Some(std::iter::once(program).chain(words).collect())
    })
}

fn resolve(program: &str, path: &[PathBuf]) -> Option<String> {
    let candidates = if program.contains('/') {
        vec![PathBuf::from(program)]
    } else {
        path.iter().map(|folder| folder.join(program)).collect()
    };
    let found = candidates.into_iter().find(|path| is_program(path))?;
    Some(found.to_string_lossy().into_owned())
}

fn is_program(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn program(path: &Path) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "#!/bin/sh\n").unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn wanted(given: Option<&str>) -> Wanted<'_> {
        Wanted {
            name: "gridwork-server",
            flag: "--server-command",
            given,
            in_venv: true,
        }
    }

    #[test]
    fn places_are_tried_in_order() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let executable = root.join("target/release/gridwork");
        let path = [root.join("bin")];
        let find = || wanted(None).find_from(Some(&executable), &path);
        let message = find().unwrap_err().to_string();
        assert!(
            message.contains("gridwork-server was not found"),
            "{message}"
        );
        assert!(message.contains("--server-command"), "{message}");
        for place in [
            ".venv/bin/gridwork-server",
            "bin/gridwork-server",
            "target/release/gridwork-server",
        ] {
            let place = root.join(place);
            program(&place);
            assert_eq!(find().unwrap(), [place.to_str().unwrap()]);
        }
    }

    #[test]
    fn a_given_command_may_have_arguments_and_is_the_only_place_tried() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        program(&root.join("bin/python"));
        program(&root.join("with space/server"));
        let path = [root.join("bin")];
        let find = |given: &str| wanted(Some(given)).find_from(None, &path);
        let python = root.join("bin/python").to_str().unwrap().to_owned();
        assert_eq!(
            find("python -m gridwork_server").unwrap(),
            [&python, "-m", "gridwork_server"]
        );
        let spaced = root.join("with space/server");
        assert_eq!(
            find(spaced.to_str().unwrap()).unwrap(),
            [spaced.to_str().unwrap()]
        );
        assert!(
            find("/nowhere/server")
                .unwrap_err()
                .to_string()
                .contains("/nowhere/server")
        );
    }
}
