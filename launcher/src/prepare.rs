//! Turns what `--model-id` names into a local folder, by `gridwork-server prepare` where it is not one already.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::cli::Cli;
use crate::error::LauncherError;
use crate::logs::Log;
use crate::model::{ModelError, Source, Trust, check_folder};
use crate::process::{Child, Exit};
use crate::settings::Settings;
use crate::shutdown::Signals;

const GRACE: Duration = Duration::from_secs(5);

/// The last line that `gridwork-server prepare` prints.
#[derive(Deserialize)]
struct Prepared {
    model_path: PathBuf,
}

/// Returns the folder, checked, or `None` when a signal came first. A folder that was there already is not checked again.
pub async fn folder_of(
    source: Source,
    cli: &Cli,
    server: &[String],
    trust: &Trust,
    log: &Log,
    signals: &mut Signals,
) -> Result<Option<PathBuf>, LauncherError> {
    let name = match source {
        Source::Folder(folder) => return Ok(Some(absolute(&folder))),
        Source::Gguf(file) => absolute(&file).to_string_lossy().into_owned(),
        Source::Hub(name) => name,
    };
    log.info(format!("preparing {name}"));
    let spec = Settings::prepare_command(cli, server, &name);
    let child = Child::start(&spec, log)?;
    let exit = tokio::select! {
        exit = child.wait() => exit,
        request = signals.next() => {
            log.info(format!("{request}: ending"));
            child.stop(GRACE).await;
            return Ok(None);
        }
    };
    match read_result(&exit) {
        Ok(folder) => {
            check_folder(&folder, trust)?;
            Ok(Some(folder))
        }
        Err(reason) => Err(ModelError::Prepare {
            model_id: name,
            reason,
        }
        .into()),
    }
}

/// The folder that was prepared, or why there is none.
fn read_result(exit: &Exit) -> Result<PathBuf, String> {
    if !exit.status.is_some_and(|status| status.success()) {
        return Err(match &exit.fatal {
            Some(record) => record.message.trim().to_owned(),
            None => exit.reason(),
        });
    }
    let line = exit.last_stdout_line.trim();
    let prepared: Prepared = serde_json::from_str(line).map_err(|_| {
        format!("gridwork-server prepare ended well without naming a folder; it said: {line}")
    })?;
    Ok(prepared.model_path)
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use super::*;

    fn exit(code: i32, stdout: &str, stderr: &str) -> Exit {
        Exit {
            tag: "prepare".to_owned(),
            status: Some(ExitStatus::from_raw(code << 8)),
            fatal: None,
            last_stdout_line: stdout.to_owned(),
            last_stderr_line: stderr.to_owned(),
        }
    }

    #[test]
    fn the_folder_is_read_from_the_last_line() {
        let found = read_result(&exit(0, r#"{"model_path": "/models/m"}"#, "noise"));
        assert_eq!(found.unwrap(), PathBuf::from("/models/m"));
    }

    #[test]
    fn a_failure_is_told_in_its_own_words() {
        let reason = read_result(&exit(2, "", "no such repository")).unwrap_err();
        assert!(reason.contains("exit code 2"), "{reason}");
        assert!(reason.contains("no such repository"), "{reason}");
        assert!(
            read_result(&exit(0, "done", ""))
                .unwrap_err()
                .contains("done")
        );
    }
}
