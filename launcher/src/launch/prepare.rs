//! Turns the model that `--model-id` names into a local folder. `gridwork-server prepare` does it where there is no
//! folder yet.

use std::path::{Path, PathBuf};
use std::time::Duration;

use gridwork_settings::Cli;
use serde::Deserialize;

use super::{PreparedTokenizer, prepare_command};
use crate::logs::Log;
use crate::model::verdict::{self, Known};
use crate::model::{Fitness, ModelError, Source, Trust, check_folder};
use crate::process::signals::Signals;
use crate::process::{Child, ChildError, Exit};

const GRACE: Duration = Duration::from_secs(5);

/// A model that could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Child(#[from] ChildError),
}

/// The last line that `gridwork-server prepare` prints.
#[derive(Debug, Deserialize)]
struct Prepared {
    model_path: PathBuf,
    /// Folder of a tokenizer.json, for a model without one.
    tokenizer_path: Option<PathBuf>,
    /// True if that tokenizer turns text into tokens.
    #[serde(default)]
    tokenizer_encodes: bool,
}

/// A folder that can be served.
#[derive(Debug)]
pub struct Model {
    pub path: PathBuf,
    /// `None`: the folder has a tokenizer.json.
    pub tokenizer: Option<PreparedTokenizer>,
}

/// Returns the folder, checked, or `None` when a signal came first. `fitness` is that of a local folder, which
/// is not checked again when it is ready, or when an earlier start left a verdict.
pub async fn folder_of(
    source: Source,
    fitness: Fitness,
    cli: &Cli,
    server: &[String],
    trust: &Trust,
    log: &Log,
    signals: &mut Signals,
) -> Result<Option<Model>, PrepareError> {
    let name = match source {
        Source::Folder(folder) if fitness == Fitness::Ready => {
            return Ok(Some(Model {
                path: absolute(&folder),
                tokenizer: None,
            }));
        }
        Source::Folder(folder) => {
            let path = absolute(&folder);
            if let Some(model) = known(&path, fitness, cli, trust) {
                return Ok(Some(model));
            }
            path.to_string_lossy().into_owned()
        }
        Source::Gguf(file) => absolute(&file).to_string_lossy().into_owned(),
        Source::Hub(name) => name,
    };
    log.info(format!("preparing {name}"));
    let spec = prepare_command(cli, server, &name);
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
        Ok(prepared) => {
            let tokenizer = prepared.tokenizer_path.map(|path| PreparedTokenizer {
                path,
                encodes: prepared.tokenizer_encodes,
            });
            match check_folder(&prepared.model_path, trust)? {
                Fitness::NoTokenizer if tokenizer.is_some() => {}
                Fitness::Ready | Fitness::UnsureTokenizer => {}
                unfit => return Err(unfit.error(&prepared.model_path).into()),
            }
            Ok(Some(Model {
                path: prepared.model_path,
                tokenizer,
            }))
        }
        Err(reason) => Err(ModelError::Prepare {
            model_id: name,
            reason,
        }
        .into()),
    }
}

/// Returns the model of a folder for whose tokenizer an earlier start has left a verdict.
fn known(folder: &Path, fitness: Fitness, cli: &Cli, trust: &Trust) -> Option<Model> {
    if !matches!(fitness, Fitness::NoTokenizer | Fitness::UnsureTokenizer) {
        return None;
    }
    let cache = verdict::hub_cache(cli.model.huggingface_hub_cache.as_deref())?;
    let revision = cli.model.code_revision.as_deref();
    let types = &trust.native_types;
    let tokenizer = match verdict::read(folder, &cache, trust.remote_code, revision, types)? {
        Known::Own => None,
        Known::Made { path, encodes } => Some(PreparedTokenizer { path, encodes }),
    };
    Some(Model {
        path: folder.to_owned(),
        tokenizer,
    })
}

/// Returns the prepared folder, or the reason why there is none.
fn read_result(exit: &Exit) -> Result<Prepared, String> {
    if !exit.status.is_some_and(|status| status.success()) {
        return Err(match &exit.fatal {
            Some(record) => record.message.trim().to_owned(),
            None => exit.reason(),
        });
    }
    let line = exit.last_stdout_line.trim();
    serde_json::from_str(line).map_err(|_| {
        format!("gridwork-server prepare ended well without naming a folder; it said: {line}")
    })
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
        assert_eq!(found.unwrap().model_path, PathBuf::from("/models/m"));
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
