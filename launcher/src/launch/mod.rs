//! The commands that start the children. They follow from the command line and from what the launcher has looked up.

pub mod prepare;

use std::ffi::OsString;
use std::path::PathBuf;

use gridwork_settings::{
    Cli, Device, RouterLaunch, RouterSettings, Secret, ShardLaunch, ShardSettings,
};
use serde::Serialize;

use crate::machine::Placement;
use crate::process::sockets::{Meeting, Sockets};
use crate::process::{CommandSpec, ShardEnvironment};

/// A path that has no form in JSON.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not UTF-8, and settings are passed on as JSON; rename the file or folder")]
pub struct NotUtf8(PathBuf);

/// Everything that the commands of router and shards are made from.
#[derive(Debug)]
pub struct LaunchPlan {
    pub cli: Cli,
    /// Name by which the user called the model.
    pub model_id: String,
    pub model_path: PathBuf,
    /// Tokenizer for the router, when the model's folder lacks a tokenizer.json.
    pub tokenizer: Option<PreparedTokenizer>,
    pub placement: Placement,
    pub compute_type: String,
    pub server: Vec<String>,
    pub router: Vec<String>,
}

/// A tokenizer.json that was made for a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreparedTokenizer {
    /// Its folder.
    pub path: PathBuf,
    /// True if it turns text into tokens. If not, it turns tokens into text, and the shard tokenizes.
    pub encodes: bool,
}

/// `gridwork-server prepare`: fetches or converts what `source` names.
pub fn prepare_command(cli: &Cli, server: &[String], source: &str) -> CommandSpec {
    let model = &cli.model;
    let mut args: Vec<OsString> = ["prepare", "--model-id", source].map(Into::into).into();
    let mut add = |flag: &str, value: Option<OsString>| {
        args.extend(value.into_iter().flat_map(|value| [flag.into(), value]));
    };
    add("--revision", model.revision.as_ref().map(Into::into));
    add(
        "--code-revision",
        model.code_revision.as_ref().map(Into::into),
    );
    let folder = model.huggingface_hub_cache.as_ref();
    add("--cache-dir", folder.map(Into::into));
    for (flag, given) in [
        ("--trust-remote-code", model.trust_remote_code),
        ("--allow-pickle-weights", model.allow_pickle_weights),
    ] {
        args.extend(given.then(|| flag.into()));
    }
    CommandSpec {
        tag: "prepare".to_owned(),
        program: server.to_vec(),
        args,
        settings: None,
        env: server_environment(cli),
        env_remove: vec!["API_KEY"],
        env_kept: None,
    }
}

impl LaunchPlan {
    /// `gridwork-server serve`: the shard of `rank`, which meets the others at `meeting`. Its rank and its socket stand
    /// on the command line, for people who look at processes.
    pub fn shard_command(&self, rank: u32, sockets: &Sockets, meeting: &Meeting) -> CommandSpec {
        let Cli {
            model, processes, ..
        } = &self.cli;
        let (meeting_file, master_port) = match meeting {
            Meeting::File(path) => (Some(path.clone()), None),
            Meeting::Port(port) => (None, Some(*port)),
        };
        let settings = ShardSettings::new(
            &self.cli,
            ShardLaunch {
                model_path: self.model_path.clone(),
                device: self.placement.device,
                world_size: self.placement.num_shard,
                master_addr: processes.master_addr.clone(),
                master_port,
                meeting_file,
                cpu_threads: self.placement.cpu_threads,
                serve_tokenizer: self.shard_tokenizes(),
            },
        );
        let mut env = server_environment(&self.cli);
        if self.placement.device == Device::Cpu {
            let given = std::env::var("GLIBC_TUNABLES").unwrap_or_default();
            env.push(("GLIBC_TUNABLES".to_owned(), with_huge_pages(&given)));
            if let Some(threads) = self.placement.cpu_threads {
                // OpenMP reads it when it is loaded, which is before the shard reads its settings.
                env.push(("OMP_NUM_THREADS".to_owned(), threads.to_string()));
            }
        }
        let args = [
            "serve".into(),
            "--rank".into(),
            rank.to_string().into(),
            "--socket".into(),
            sockets.path(rank).into(),
        ];
        CommandSpec {
            tag: format!("shard-{rank}"),
            program: self.server.clone(),
            args: args.into(),
            settings: Some(json(&settings)),
            env,
            env_remove: vec!["API_KEY"],
            env_kept: Some(ShardEnvironment {
                also: processes.shard_env.clone(),
                runs_code: model.trust_remote_code,
            }),
        }
    }

    /// `gridwork-router`. It fetches nothing and reads no variable of ours, so that secrets in the environment are not
    /// for it; the keys of the API are in its settings.
    pub fn router_command(&self, sockets: &Sockets) -> CommandSpec {
        let settings = RouterSettings::new(
            &self.cli,
            RouterLaunch {
                model_id: self.model_id.clone(),
                model_path: self.model_path.clone(),
                tokenizer_path: self.tokenizer.as_ref().map(|made| made.path.clone()),
                tokenize_on_shard: self.shard_tokenizes(),
                revision: self.cli.model.revision.clone(),
                shard_socket: sockets.path(0).to_string_lossy().into_owned(),
                compute_type: self.compute_type.clone(),
                supervised: true,
            },
        );
        CommandSpec {
            tag: "router".to_owned(),
            program: self.router.clone(),
            args: Vec::new(),
            settings: Some(json(&settings)),
            env: Vec::new(),
            env_remove: vec!["API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"],
            env_kept: None,
        }
    }

    /// Refuses paths that have no form in JSON.
    pub fn check(&self, sockets: &Sockets) -> Result<(), NotUtf8> {
        let socket = sockets.path(0);
        let tokenizer = self.tokenizer.as_ref().map(|made| made.path.as_path());
        let paths = [
            Some(self.model_path.as_path()),
            tokenizer,
            Some(&self.cli.run.generation_config),
            self.cli.names.tokenizer_config_path.as_deref(),
            self.cli.http.uds.as_deref(),
            Some(&socket),
        ];
        match paths
            .into_iter()
            .flatten()
            .find(|path| path.to_str().is_none())
        {
            Some(path) => Err(NotUtf8(path.to_owned())),
            None => Ok(()),
        }
    }

    fn shard_tokenizes(&self) -> bool {
        self.tokenizer.as_ref().is_some_and(|made| !made.encodes)
    }
}

/// Settings always have a JSON form: paths that are not UTF-8 are refused before (see [`LaunchPlan::check`]).
fn json(settings: &impl Serialize) -> Secret {
    Secret(serde_json::to_string(settings).unwrap_or_default())
}

/// Variables of all Python processes. Python must write its lines as they are printed, for the log to be live.
fn server_environment(cli: &Cli) -> Vec<(String, String)> {
    let mut env = vec![("PYTHONUNBUFFERED".to_owned(), "1".to_owned())];
    if let Some(folder) = &cli.model.huggingface_hub_cache {
        let folder = folder.to_string_lossy().into_owned();
        env.push(("HF_HUB_CACHE".to_owned(), folder));
    }
    env
}

/// Adds huge pages to the tunables that are `given`: with small pages, weights and cache have more pages than the TLB
/// of a CPU holds, which costs most on virtual machines.
fn with_huge_pages(given: &str) -> String {
    const NAME: &str = "glibc.malloc.hugetlb";
    let mut tunables: Vec<_> = given.split(':').filter(|one| !one.is_empty()).collect();
    let ours = format!("{NAME}=1");
    if !tunables
        .iter()
        .any(|one| one.split('=').next() == Some(NAME))
    {
        tunables.push(&ours);
    }
    tunables.join(":")
}

#[cfg(test)]
mod tests {
    use gridwork_settings::try_parse;
    use serde_json::{Value, json};

    use super::*;

    fn plan(args: &[&str]) -> LaunchPlan {
        LaunchPlan {
            cli: try_parse([&["gridwork", "--model-id", "org/m"], args].concat()).unwrap(),
            model_id: "org/m".to_owned(),
            model_path: "/m".into(),
            tokenizer: None,
            placement: Placement {
                device: Device::Cpu,
                num_shard: 2,
                cpu_threads: Some(3),
            },
            compute_type: "cpu".to_owned(),
            server: vec!["server".to_owned()],
            router: vec!["router".to_owned()],
        }
    }

    fn settings_of(spec: &CommandSpec) -> Value {
        serde_json::from_str(&spec.settings.as_ref().unwrap().0).unwrap()
    }

    #[test]
    fn the_key_is_in_the_routers_settings_alone() {
        let plan = plan(&["--api-key", "hush", "--api-key", "also,more"]);
        let sockets = Sockets::prepare(None, 2).unwrap();
        let router = plan.router_command(&sockets);
        let keys = &settings_of(&router)["http"]["api_key"];
        assert_eq!(*keys, json!(["hush", "also", "more"]));
        assert!(router.args.is_empty() && router.env.is_empty());
        assert!(router.env_remove.contains(&"API_KEY"));
        let shard = plan.shard_command(0, &sockets, &Meeting::Port(1));
        assert!(shard.env_remove.contains(&"API_KEY"));
        assert!(!settings_of(&shard).to_string().contains("hush"));
        assert!(!format!("{plan:?} {router:?}").contains("hush"));
    }

    #[test]
    fn a_shard_gets_its_place_and_its_flags() {
        let plan = plan(&[
            "--kv-cache-memory",
            "1MiB",
            "--model-impl",
            "native",
            "--task",
            "fill-mask",
            "--attention",
            "flash-attn",
            "--disable-fusion",
            "--quantize",
            "int4",
            "--block-size",
            "32",
            "--cuda-graphs",
            "8, 1",
            "--cuda-memory-fraction",
            "0.9",
        ]);
        let sockets = Sockets::prepare(None, 2).unwrap();
        let shard = plan.shard_command(1, &sockets, &Meeting::Port(4321));
        assert_eq!(shard.tag, "shard-1");
        let args: Vec<_> = shard.args.iter().map(|arg| arg.to_string_lossy()).collect();
        let socket = sockets.path(1);
        let expected = ["serve", "--rank", "1", "--socket", socket.to_str().unwrap()];
        assert_eq!(args, expected);
        let expected = json!({
            "dtype": "auto",
            "model_impl": "paged",
            "task": "fill-mask",
            "generation_config": "auto",
            "attention": "flash-attn",
            "fuse": false,
            "quantize": "int4",
            "compile": false,
            "kv_cache_memory_bytes": 1048576,
            "cuda_memory_fraction": 0.9,
            "cuda_graphs": [1, 8],
            "model_path": "/m",
            "device": "cpu",
            "world_size": 2,
            "master_addr": "127.0.0.1",
            "master_port": 4321,
            "meeting_file": null,
            "cpu_threads": 3,
            "serve_tokenizer": false,
            "block_size": 32,
            "trust_remote_code": false,
            "code_revision": null,
            "revision": null,
            "otlp_endpoint": null,
            "otlp_service_name": "gridwork.shard",
            "log_level": "info",
        });
        assert_eq!(settings_of(&shard), expected);
    }

    #[test]
    fn huge_pages_are_asked_for_unless_the_user_decides() {
        assert_eq!(with_huge_pages(""), "glibc.malloc.hugetlb=1");
        assert_eq!(
            with_huge_pages("glibc.malloc.arena_max=1"),
            "glibc.malloc.arena_max=1:glibc.malloc.hugetlb=1"
        );
        assert_eq!(
            with_huge_pages("glibc.malloc.hugetlb=0"),
            "glibc.malloc.hugetlb=0"
        );
        let mut plan = plan(&[]);
        let sockets = Sockets::prepare(None, 1).unwrap();
        let asks = |plan: &LaunchPlan| {
            let env = plan.shard_command(0, &sockets, &Meeting::Port(1)).env;
            env.iter()
                .any(|(name, value)| name == "GLIBC_TUNABLES" && value.contains("hugetlb"))
        };
        assert!(asks(&plan));
        plan.placement.device = Device::Cuda;
        assert!(!asks(&plan));
    }

    #[test]
    fn a_tokenizer_that_was_made_is_passed_to_the_router() {
        let mut plan = plan(&[]);
        let sockets = Sockets::prepare(None, 1).unwrap();
        let facts = |plan: &LaunchPlan| {
            let shard = settings_of(&plan.shard_command(0, &sockets, &Meeting::Port(1)));
            let router = settings_of(&plan.router_command(&sockets))["launch"].take();
            (
                router["tokenizer_path"].clone(),
                router["tokenize_on_shard"].clone(),
                shard["serve_tokenizer"].clone(),
            )
        };
        assert_eq!(facts(&plan), (Value::Null, json!(false), json!(false)));
        let tokenizer = |encodes| {
            let path = "/t".into();
            Some(PreparedTokenizer { path, encodes })
        };
        plan.tokenizer = tokenizer(true);
        assert_eq!(facts(&plan), (json!("/t"), json!(false), json!(false)));
        plan.tokenizer = tokenizer(false);
        assert_eq!(facts(&plan), (json!("/t"), json!(true), json!(true)));
    }
}
