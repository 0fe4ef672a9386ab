//! What is started: the command line after everything in it has been looked up, and the commands that follow from it.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::cli::{Cli, Device, value_name};
use crate::devices::Placement;
use crate::process::CommandSpec;
use crate::shard_environment::ShardEnvironment;
use crate::sockets::{Meeting, Sockets};

/// All that the commands of the children are made from.
#[derive(Debug)]
pub struct Settings {
    pub cli: Cli,
    /// The name that clients know the model by.
    pub model_id: String,
    pub model_path: PathBuf,
    /// Where the router finds a tokenizer.json that the model's folder lacks.
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
    /// Whether it turns text into tokens; else only tokens into text, and the shard does the other.
    pub encodes: bool,
}

/// Arguments of a command, written as `--flag value`.
#[derive(Default)]
struct Arguments(Vec<OsString>);

impl Arguments {
    fn add(&mut self, flag: &str, value: impl Into<OsString>) {
        self.0.push(flag.into());
        self.0.push(value.into());
    }

    fn number(&mut self, flag: &str, value: impl ToString) {
        self.add(flag, value.to_string());
    }

    fn number_if(&mut self, flag: &str, value: Option<impl ToString>) {
        if let Some(value) = value {
            self.number(flag, value);
        }
    }

    fn text_if(&mut self, flag: &str, value: &Option<String>) {
        if let Some(value) = value {
            self.add(flag, value);
        }
    }

    fn flag_if(&mut self, flag: &str, given: bool) {
        if given {
            self.0.push(flag.into());
        }
    }
}

impl Settings {
    /// `gridwork-server prepare`: fetches or converts what `source` names.
    pub fn prepare_command(cli: &Cli, server: &[String], source: &str) -> CommandSpec {
        let mut args = Arguments::default();
        args.0.push("prepare".into());
        args.add("--model-id", source);
        args.text_if("--revision", &cli.model.revision);
        args.flag_if("--trust-remote-code", cli.model.trust_remote_code);
        args.text_if("--code-revision", &cli.model.code_revision);
        args.flag_if("--allow-pickle-weights", cli.model.allow_pickle_weights);
        if let Some(folder) = &cli.model.huggingface_hub_cache {
            args.add("--cache-dir", folder);
        }
        CommandSpec {
            tag: "prepare".to_owned(),
            program: server.to_vec(),
            args: args.0,
            env: server_environment(cli),
            env_remove: vec!["API_KEY"],
            env_kept: None,
        }
    }

    /// `gridwork-server serve`: the shard of `rank`, which meets the others at `meeting`.
    pub fn shard_command(&self, rank: u32, sockets: &Sockets, meeting: &Meeting) -> CommandSpec {
        let Cli {
            model,
            batching,
            processes,
            output,
            ..
        } = &self.cli;
        let mut args = Arguments::default();
        args.0.push("serve".into());
        args.add("--model-path", &self.model_path);
        args.add("--socket", sockets.path(rank));
        args.number("--rank", rank);
        args.number("--world-size", self.placement.num_shard);
        match meeting {
            Meeting::File(path) => args.add("--meeting-file", path),
            Meeting::Port(port) => {
                args.add("--master-addr", &processes.master_addr);
                args.number("--master-port", port);
            }
        }
        args.add("--device", value_name(self.placement.device));
        args.add("--dtype", value_name(model.dtype));
        args.add("--model-impl", value_name(model.model_impl));
        args.add("--task", value_name(model.task));
        args.add("--generation-config", &model.generation_config);
        args.add("--attention", value_name(model.attention));
        args.flag_if("--disable-fusion", model.disable_fusion);
        if let Some(method) = model.quantize {
            args.add("--quantize", value_name(method));
        }
        args.flag_if("--compile", model.compile);
        args.number("--block-size", batching.block_size);
        args.text_if("--cuda-graphs", &batching.cuda_graphs);
        args.number_if("--kv-cache-memory", batching.kv_cache_memory);
        args.number("--cuda-memory-fraction", batching.cuda_memory_fraction);
        args.flag_if("--trust-remote-code", model.trust_remote_code);
        args.text_if("--code-revision", &model.code_revision);
        args.flag_if("--serve-tokenizer", self.shard_tokenizes());
        args.number_if("--cpu-threads", self.placement.cpu_threads);
        args.text_if("--otlp-endpoint", &output.otlp_endpoint);
        args.add("--otlp-service-name", self.service_name("gridwork.shard"));
        args.add("--log-level", value_name(output.log_level));
        args.text_if("--revision", &model.revision);
        let mut env = server_environment(&self.cli);
        if self.placement.device == Device::Cpu {
            let given = std::env::var("GLIBC_TUNABLES").unwrap_or_default();
            env.push(("GLIBC_TUNABLES".to_owned(), with_huge_pages(&given)));
            if let Some(threads) = self.placement.cpu_threads {
                // Read by OpenMP when it is loaded, which is before the shard reads its own flags.
                env.push(("OMP_NUM_THREADS".to_owned(), threads.to_string()));
            }
        }
        CommandSpec {
            tag: format!("shard-{rank}"),
            program: self.server.clone(),
            args: args.0,
            env,
            env_remove: vec!["API_KEY"],
            env_kept: Some(ShardEnvironment {
                also: processes.shard_env.clone(),
                runs_code: model.trust_remote_code,
            }),
        }
    }

    /// `gridwork-router`. The key of the API goes by the environment alone: arguments are visible to every user.
    pub fn router_command(&self, sockets: &Sockets) -> CommandSpec {
        let Cli {
            model,
            http,
            limits,
            batching,
            processes,
            output,
            ..
        } = &self.cli;
        let mut args = Arguments::default();
        args.add("--model-path", &self.model_path);
        if let Some(tokenizer) = &self.tokenizer {
            args.add("--tokenizer-path", &tokenizer.path);
        }
        args.flag_if("--tokenize-on-shard", self.shard_tokenizes());
        args.add("--model-id", &self.model_id);
        for name in &model.served_model_name {
            args.0.push(format!("--served-model-name={name}").into());
        }
        args.text_if("--revision", &model.revision);
        args.add("--shard-socket", sockets.path(0));
        args.flag_if("--supervised", true);
        args.add("--hostname", &http.hostname);
        args.number("--port", http.port);
        args.number("--max-concurrent-requests", limits.max_concurrent_requests);
        args.number("--max-n", limits.max_n);
        args.number("--max-echo-bytes", limits.max_echo_bytes);
        args.number("--max-best-of", limits.max_best_of);
        args.number("--max-stop-sequences", limits.max_stop_sequences);
        args.number("--max-top-n-tokens", limits.max_top_n_tokens);
        args.number_if("--max-input-tokens", limits.max_input());
        args.number_if("--max-total-tokens", limits.max_total_tokens);
        args.number(
            "--max-batch-prefill-tokens",
            batching.max_batch_prefill_tokens,
        );
        args.number_if("--max-batch-total-tokens", batching.max_batch_total_tokens);
        args.number("--max-batch-size", batching.max_batch_size);
        args.number("--block-size", batching.block_size);
        args.flag_if("--disable-prefix-cache", batching.disable_prefix_cache);
        if let Some(isolate) = batching.isolate_cache_by_key {
            args.0
                .push(format!("--isolate-cache-by-key={isolate}").into());
        }
        args.number("--speculate", batching.speculate);
        args.number("--max-batch-tokens", batching.max_batch_tokens);
        args.number_if("--max-client-batch-size", http.max_client_batch_size);
        args.0
            .push(format!("--auto-truncate={}", http.auto_truncate).into());
        args.number("--payload-limit", http.payload_limit);
        args.number_if("--max-connections", http.max_connections);
        args.number("--client-read-timeout", http.client_read_timeout);
        args.number("--client-write-timeout", http.client_write_timeout);
        args.number("--client-idle-timeout", http.client_idle_timeout);
        for origin in &http.cors_allow_origin {
            args.add("--cors-allow-origin", origin);
        }
        args.text_if("--default-prompt-name", &model.default_prompt_name);
        args.text_if("--default-prompt", &model.default_prompt);
        if let Some(path) = &model.tokenizer_config_path {
            args.add("--tokenizer-config-path", path);
        }
        args.flag_if("--disable-grammar-support", limits.disable_grammar_support);
        args.number("--validation-workers", limits.validation_workers);
        args.number(
            "--graceful-termination-timeout",
            http.graceful_termination_timeout,
        );
        args.number("--startup-timeout", processes.startup_timeout);
        args.number("--shard-timeout", processes.shard_timeout);
        args.number("--queue-timeout", limits.queue_timeout);
        args.text_if("--otlp-endpoint", &output.otlp_endpoint);
        args.add("--otlp-service-name", self.service_name("gridwork.router"));
        args.add("--log-level", value_name(output.log_level));
        let mut env = vec![("COMPUTE_TYPE".to_owned(), self.compute_type.clone())];
        if !http.api_key.is_empty() {
            let keys: Vec<&str> = http.api_key.iter().map(|key| key.0.as_str()).collect();
            env.push(("API_KEY".to_owned(), keys.join(",")));
        }
        CommandSpec {
            tag: "router".to_owned(),
            program: self.router.clone(),
            args: args.0,
            env,
            // Variables of flags that are passed above anyway, in a form that the router need not understand.
            env_remove: vec![
                "AUTO_TRUNCATE",
                "CORS_ALLOW_ORIGIN",
                "DISABLE_GRAMMAR_SUPPORT",
                "DISABLE_PREFIX_CACHE",
                "ISOLATE_CACHE_BY_KEY",
                "MAX_INPUT_LENGTH",
                // It fetches nothing.
                "HF_TOKEN",
                "HUGGING_FACE_HUB_TOKEN",
                "SERVED_MODEL_NAME",
            ],
            env_kept: None,
        }
    }

    fn shard_tokenizes(&self) -> bool {
        self.tokenizer.as_ref().is_some_and(|made| !made.encodes)
    }

    fn service_name(&self, default: &str) -> String {
        let given = &self.cli.output.otlp_service_name;
        given.clone().unwrap_or_else(|| default.to_owned())
    }
}

/// Python must write its lines as they are printed, for the log to be live.
fn server_environment(cli: &Cli) -> Vec<(String, String)> {
    let mut env = vec![("PYTHONUNBUFFERED".to_owned(), "1".to_owned())];
    if let Some(folder) = &cli.model.huggingface_hub_cache {
        let folder = folder.to_string_lossy().into_owned();
        env.push(("HF_HUB_CACHE".to_owned(), folder));
    }
    env
}

/// What is `given`, and that memory be asked for in huge pages: of small ones, weights and the cache have more than a CPU
/// remembers the places of, which is felt on virtual machines above all.
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
    use clap::Parser;

    use super::*;

    fn settings(args: &[&str]) -> Settings {
        Settings {
            cli: Cli::parse_from([&["gridwork", "--model-id", "org/m"], args].concat()),
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

    fn written(spec: &CommandSpec) -> String {
        let args: Vec<_> = spec.args.iter().map(|arg| arg.to_string_lossy()).collect();
        args.join(" ")
    }

    #[test]
    fn the_key_is_in_the_routers_environment_and_nowhere_else() {
        let settings = settings(&["--api-key", "hush", "--api-key", "also,more"]);
        let sockets = Sockets::prepare(None, 2).unwrap();
        let router = settings.router_command(&sockets);
        assert!(!written(&router).contains("hush"));
        assert!(
            router
                .env
                .contains(&("API_KEY".to_owned(), "hush,also,more".to_owned()))
        );
        let shard = settings.shard_command(0, &sockets, &Meeting::Port(1));
        assert!(shard.env_remove.contains(&"API_KEY"));
        assert!(!format!("{settings:?}").contains("hush"));
    }

    #[test]
    fn a_shard_is_told_its_place() {
        let settings = settings(&[
            "--kv-cache-memory",
            "1MiB",
            "--model-impl",
            "native",
            "--task",
            "embed",
            "--attention",
            "sdpa",
            "--disable-fusion",
            "--quantize",
            "int4",
            "--compile",
            "--block-size",
            "32",
            "--cuda-graphs",
            "1, 8",
        ]);
        let sockets = Sockets::prepare(None, 2).unwrap();
        let shard = settings.shard_command(1, &sockets, &Meeting::Port(4321));
        assert_eq!(shard.tag, "shard-1");
        let written = written(&shard);
        for expected in [
            "serve --model-path /m --socket",
            "--rank 1 --world-size 2",
            "--master-port 4321",
            "--device cpu --dtype auto --model-impl paged --task embed --generation-config auto --attention sdpa --disable-fusion --quantize int4 \
             --compile",
            "--block-size 32 --cuda-graphs 1,8 --kv-cache-memory 1048576",
            "--cpu-threads 3",
        ] {
            assert!(written.contains(expected), "{written}");
        }
    }

    #[test]
    fn huge_pages_are_asked_for_unless_something_else_is_said_of_them() {
        assert_eq!(with_huge_pages(""), "glibc.malloc.hugetlb=1");
        assert_eq!(
            with_huge_pages("glibc.malloc.arena_max=1"),
            "glibc.malloc.arena_max=1:glibc.malloc.hugetlb=1"
        );
        assert_eq!(
            with_huge_pages("glibc.malloc.hugetlb=0"),
            "glibc.malloc.hugetlb=0"
        );
        let mut settings = settings(&[]);
        let sockets = Sockets::prepare(None, 1).unwrap();
        let asks = |settings: &Settings| {
            let env = settings.shard_command(0, &sockets, &Meeting::Port(1)).env;
            env.iter()
                .any(|(name, value)| name == "GLIBC_TUNABLES" && value.contains("hugetlb"))
        };
        assert!(asks(&settings));
        settings.placement.device = Device::Cuda;
        assert!(!asks(&settings));
    }

    #[test]
    fn a_tokenizer_that_was_made_is_passed_to_the_router() {
        let mut settings = settings(&[]);
        let sockets = Sockets::prepare(None, 1).unwrap();
        let commands = |settings: &Settings| {
            let shard = written(&settings.shard_command(0, &sockets, &Meeting::Port(1)));
            (written(&settings.router_command(&sockets)), shard)
        };
        let (router, shard) = commands(&settings);
        assert!(!router.contains("--token") && !shard.contains("--serve-tokenizer"));
        let tokenizer = |encodes| {
            let path = "/t".into();
            Some(PreparedTokenizer { path, encodes })
        };
        settings.tokenizer = tokenizer(true);
        let (router, shard) = commands(&settings);
        assert!(
            router.contains("--tokenizer-path /t --model-id"),
            "{router}"
        );
        assert!(!shard.contains("--serve-tokenizer"), "{shard}");
        settings.tokenizer = tokenizer(false);
        let (router, shard) = commands(&settings);
        assert!(
            router.contains("--tokenizer-path /t --tokenize-on-shard"),
            "{router}"
        );
        assert!(shard.contains("--serve-tokenizer"), "{shard}");
    }

    #[test]
    fn the_old_name_of_a_limit_is_passed_by_its_new_one() {
        let settings = settings(&["--max-input-length", "7"]);
        let sockets = Sockets::prepare(None, 1).unwrap();
        assert!(written(&settings.router_command(&sockets)).contains("--max-input-tokens 7"));
    }
}
