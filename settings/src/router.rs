//! The settings of the router, as the launcher writes them and the router reads them.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cli::Cli;
use crate::flags::{Batching, Http, Names, Output, RequestLimits, Timeouts};

/// Everything that a router is started with.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouterSettings {
    pub launch: RouterLaunch,
    pub names: Names,
    pub http: Http,
    pub limits: RequestLimits,
    pub batching: Batching,
    pub timeouts: Timeouts,
    pub output: Output,
}

/// Facts that the launcher has found out for the router.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouterLaunch {
    /// Name by which the user called the model.
    pub model_id: String,
    /// Folder of the model.
    pub model_path: PathBuf,
    /// Folder of the tokenizer, when that is not the model's.
    pub tokenizer_path: Option<PathBuf>,
    /// True if the shard turns texts into tokens; the tokenizer.json then only turns tokens into text.
    pub tokenize_on_shard: bool,
    /// Revision of the model, for `/info`.
    pub revision: Option<String>,
    /// Address of the shard of rank 0: path of a unix socket, or `host:port`.
    pub shard_socket: String,
    /// Value of the header `x-compute-type`.
    pub compute_type: String,
    /// True if stdin is a socket of the launcher.
    pub supervised: bool,
}

/// Settings that this program cannot read.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error("settings: {at}: {cause}; {REMEDY}")]
    Wrong { at: String, cause: String },
    #[error("settings: missing field `{0}`; {REMEDY}")]
    Missing(String),
}

const REMEDY: &str = concat!(
    "this program is of version ",
    env!("CARGO_PKG_VERSION"),
    ", and whatever wrote the settings is probably of another one; install all programs from one build"
);

impl RouterSettings {
    /// The router's part of `cli`.
    pub fn new(cli: &Cli, launch: RouterLaunch) -> Self {
        Self {
            launch,
            names: cli.names.clone(),
            http: cli.http.clone(),
            limits: cli.limits.clone(),
            batching: cli.batching.clone(),
            timeouts: cli.timeouts.clone(),
            output: cli.output.clone(),
        }
    }

    /// Reads what [`RouterSettings`] serializes to. Keys of the API are in it.
    ///
    /// # Errors
    ///
    /// Names a field that is unknown, missing or of another type.
    pub fn from_json(text: &str) -> Result<Self, SettingsError> {
        let mut reader = serde_json::Deserializer::from_str(text);
        let settings: Self = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
            let at = error.path().to_string();
            SettingsError::Wrong {
                at: if at == "." {
                    "the whole".to_owned()
                } else {
                    at
                },
                cause: error.inner().to_string(),
            }
        })?;
        // serde takes an optional field that is missing for one without a value.
        let given: Value = serde_json::from_str(text).unwrap_or_default();
        let complete = serde_json::to_value(&settings).unwrap_or_default();
        match missing_field(&given, &complete) {
            Some(path) => Err(SettingsError::Missing(path)),
            None => Ok(settings),
        }
    }
}

/// Path of the first field of `complete` that `given` lacks.
fn missing_field(given: &Value, complete: &Value) -> Option<String> {
    let (given, complete) = (given.as_object()?, complete.as_object()?);
    complete
        .iter()
        .find_map(|(name, value)| match given.get(name) {
            None => Some(name.clone()),
            Some(given) => missing_field(given, value).map(|path| format!("{name}.{path}")),
        })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::try_parse;

    fn written(args: &[&str]) -> Value {
        let cli = try_parse([&["gridwork", "--model-id", "org/m"], args].concat()).expect("flags");
        let launch = RouterLaunch {
            shard_socket: "/s/0".to_owned(),
            ..RouterLaunch::default()
        };
        serde_json::to_value(RouterSettings::new(&cli, launch)).expect("JSON")
    }

    fn refusal(settings: &Value) -> String {
        let read = RouterSettings::from_json(&settings.to_string());
        read.expect_err("a refusal").to_string()
    }

    #[test]
    fn settings_survive_the_way_to_the_router() {
        let args = [
            "--api-key",
            "hush",
            "--speculate",
            "3",
            "--max-input-length",
            "7",
        ];
        let read = RouterSettings::from_json(&written(&args).to_string()).expect("settings");
        assert_eq!(read.http.api_key[0].0, "hush");
        assert_eq!(read.batching.speculate, 3);
        assert_eq!(read.limits.max_input_tokens, Some(7));
        assert_eq!(read.launch.shard_socket, "/s/0");
        assert!(!format!("{read:?}").contains("hush"));
    }

    #[test]
    fn settings_of_another_version_are_refused_by_field() {
        let mut unknown = written(&[]);
        unknown["http"]["zip"] = json!(true);
        let mut missing = written(&[]);
        missing["limits"]
            .as_object_mut()
            .expect("an object")
            .remove("max_n");
        let mut missing_option = written(&[]);
        missing_option["http"]
            .as_object_mut()
            .expect("an object")
            .remove("max_connections");
        let mut wrong = written(&[]);
        wrong["http"]["port"] = json!("3000");
        let mut unknown_name = written(&[]);
        unknown_name["output"]["log_level"] = json!("loud");
        for (settings, expected) in [
            (unknown, "unknown field `zip`"),
            (missing, "missing field `max_n`"),
            (missing_option, "missing field `http.max_connections`"),
            (wrong, "http.port: invalid type: string"),
            (unknown_name, "output.log_level: unknown variant `loud`"),
            (json!("text"), "the whole"),
        ] {
            let message = refusal(&settings);
            assert!(message.contains(expected), "{message}");
            assert!(message.contains("from one build"), "{message}");
        }
    }
}
