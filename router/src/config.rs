//! Derives the configurations of the router's parts from its settings.

use std::net::IpAddr;
use std::time::Duration;

use gridwork_edge::tls::{self, TlsFiles};
use gridwork_engine::{EncoderConfig, EngineConfig, ShardAddress, TenantLimits};
use gridwork_settings::{RouterSettings, open_files};

use crate::api_keys::{ApiKeys, KeySettings};
use crate::connections;
use crate::encoder::{DefaultPrompt, EncoderLimits, LARGEST_BODIES};

/// Default of `--max-client-batch-size` for prompts.
const DEFAULT_CLIENT_PROMPTS: usize = 128;
/// Its default for inputs of an encoder, as in text-embeddings-inference.
const DEFAULT_CLIENT_INPUTS: usize = 32;
/// Its default on OpenAI's routes for encoders, as at OpenAI.
const DEFAULT_OPENAI_INPUTS: usize = 2048;

/// The settings, with what handlers need of what follows from them.
#[derive(Debug, Clone)]
pub struct Config {
    /// Settings as the launcher passed them, without the keys of the API.
    pub settings: RouterSettings,
    /// Names that clients know the model by, at least one; answers carry the first.
    pub served_names: Vec<String>,
    /// Maximum number of prompts of a request.
    pub max_client_batch_size: usize,
    /// Keys that are accepted; empty: none is needed.
    pub api_keys: ApiKeys,
    /// True if requests share cached prompts only with those that send the same key.
    pub isolate_cache_by_key: bool,
    /// Origins that may call from a browser; empty: any, or none where keys are needed. `*` is any.
    pub cors_allow_origin: Vec<String>,
}

impl Config {
    /// Takes the keys of the API out of `settings`.
    fn new(mut settings: RouterSettings) -> Result<Self, String> {
        let secrets = std::mem::take(&mut settings.http.api_key);
        let api_keys = ApiKeys::new(KeySettings {
            given: secrets.into_iter().map(|secret| secret.0).collect(),
            file: settings.http.api_key_file.clone(),
            limits: TenantLimits {
                max_requests: settings.limits.max_requests_per_key,
                max_tokens_per_minute: settings.limits.max_tokens_per_minute_per_key,
            },
        })
        .map_err(|error| error.to_string())?;
        let served_names = match settings.names.served_model_name.clone() {
            names if names.is_empty() => vec![settings.launch.model_id.clone()],
            names => names,
        };
        let client_batch_size = settings.http.max_client_batch_size;
        let isolate = settings.batching.isolate_cache_by_key;
        Ok(Config {
            served_names,
            max_client_batch_size: client_batch_size.unwrap_or(DEFAULT_CLIENT_PROMPTS),
            isolate_cache_by_key: isolate.unwrap_or(api_keys.may_be_several()),
            api_keys,
            cors_allow_origin: settings.http.cors_allow_origin.clone(),
            settings,
        })
    }
}

/// Everything that a router is run with.
#[derive(Debug, Clone)]
pub struct RouterConfig {
    pub http: Config,
    pub engine: EngineConfig,
    /// For models that encode.
    pub encoder: EncoderConfig,
    pub encoder_limits: EncoderLimits,
    /// Put before texts to embed, in place of the model's own default.
    pub default_prompt: Option<DefaultPrompt>,
    pub connections: connections::Limits,
}

impl RouterConfig {
    /// Works out what follows from `settings` and from the limit of open files of this process.
    ///
    /// # Errors
    ///
    /// A message for the user that names the setting.
    pub fn new(settings: RouterSettings, file_limit: u64) -> Result<Self, String> {
        let RouterSettings {
            names,
            http,
            limits,
            batching,
            timeouts,
            ..
        } = &settings;
        let socket = &settings.launch.shard_socket;
        let shard: ShardAddress = socket
            .parse()
            .map_err(|error| format!("settings: launch.shard_socket is \"{socket}\": {error}"))?;
        let max_connections = open_files::max_connections(
            http.max_connections,
            limits.max_concurrent_requests,
            file_limit,
        )?;
        let client_inputs = |default| http.max_client_batch_size.unwrap_or(default);
        let queue_timeout = Duration::from_secs(limits.queue_timeout);
        let startup_timeout = Duration::from_secs(timeouts.startup_timeout);
        let shard_timeout = Duration::from_secs(timeouts.shard_timeout);
        Ok(RouterConfig {
            encoder: EncoderConfig {
                shard: shard.clone(),
                max_batch_tokens: batching.max_batch_tokens,
                max_batch_sequences: batching.max_batch_size,
                max_concurrent_requests: limits.max_concurrent_requests,
                queue_timeout,
                startup_timeout,
                shard_timeout,
                speculate: batching.speculate,
            },
            default_prompt: match (&names.default_prompt, &names.default_prompt_name) {
                (Some(text), _) => Some(DefaultPrompt::Text(text.clone())),
                (None, name) => name.clone().map(DefaultPrompt::Name),
            },
            encoder_limits: EncoderLimits {
                max_input_tokens: limits.max_input_tokens,
                max_batch_tokens: batching.max_batch_tokens,
                max_batch_size: batching.max_batch_size,
                max_client_batch_size: client_inputs(DEFAULT_CLIENT_INPUTS),
                max_openai_inputs: client_inputs(DEFAULT_OPENAI_INPUTS),
                auto_truncate: http.auto_truncate,
                max_request_bytes: http.payload_limit.saturating_mul(LARGEST_BODIES),
            },
            connections: connections::Limits {
                max_connections,
                read_timeout: Duration::from_secs(http.client_read_timeout),
                write_timeout: Duration::from_secs(http.client_write_timeout),
                idle_timeout: Duration::from_secs(http.client_idle_timeout),
            },
            engine: EngineConfig {
                shard,
                block_size_tokens: batching.block_size,
                max_batch_prefill_tokens: batching.max_batch_prefill_tokens,
                max_sequences: batching.max_batch_size,
                max_total_tokens: limits.max_total_tokens,
                max_batch_total_tokens: batching.max_batch_total_tokens,
                prefix_cache: !batching.disable_prefix_cache,
                speculate: batching.speculate,
                max_concurrent_requests: limits.max_concurrent_requests,
                queue_timeout,
                startup_timeout,
                shard_timeout,
                more_eos_token_ids: Vec::new(),
            },
            http: Config::new(settings)?,
        })
    }

    /// The settings, without the keys of the API.
    pub fn settings(&self) -> &RouterSettings {
        &self.http.settings
    }

    /// `host:port` to listen at; an IPv6 address is put into brackets.
    pub fn listen_address(&self, port: u16) -> String {
        let hostname = &self.settings().http.hostname;
        match hostname.parse::<IpAddr>() {
            Ok(IpAddr::V6(address)) => format!("[{address}]:{port}"),
            _ => format!("{hostname}:{port}"),
        }
    }

    /// Certificate and key; `None`: connections are not encrypted.
    pub fn tls_files(&self) -> Option<TlsFiles> {
        let http = &self.settings().http;
        tls::files(http.tls_cert.as_deref(), http.tls_key.as_deref())
    }
}

#[cfg(test)]
mod tests {
    use gridwork_settings::{RouterLaunch, try_parse};

    use super::*;

    fn config_at(socket: &str, args: &[&str]) -> Result<RouterConfig, String> {
        let cli = try_parse([&["gridwork", "--model-id", "org/m"], args].concat()).expect("flags");
        let launch = RouterLaunch {
            model_id: "org/m".to_owned(),
            shard_socket: socket.to_owned(),
            ..RouterLaunch::default()
        };
        RouterConfig::new(RouterSettings::new(&cli, launch), 1 << 20)
    }

    fn config(args: &[&str]) -> RouterConfig {
        config_at("/s/0", args).expect("a configuration")
    }

    #[test]
    fn defaults_are_the_documented_ones() {
        let config = config(&[]);
        assert_eq!(config.engine.max_batch_prefill_tokens, 512);
        assert_eq!(config.engine.max_sequences, 128);
        assert_eq!(config.engine.max_concurrent_requests, 128);
        assert_eq!(config.engine.speculate, 0);
        assert!(matches!(&config.engine.shard, ShardAddress::Unix(path) if *path == *"/s/0"));
        assert!(config.http.api_keys.is_empty() && !config.http.isolate_cache_by_key);
        assert_eq!(config.http.served_names, ["org/m"]);
        assert_eq!(config.http.max_client_batch_size, 128);
        assert_eq!(config.encoder_limits.max_client_batch_size, 32);
        assert_eq!(config.encoder_limits.max_openai_inputs, 2048);
        assert_eq!(config.connections.max_connections, 4096);
    }

    #[test]
    fn a_socket_that_is_no_address_is_refused_by_name() {
        let message = config_at("host:notaport", &[]).expect_err("a refusal");
        assert!(message.contains("launch.shard_socket"), "{message}");
    }

    #[test]
    fn a_key_is_never_shown() {
        let config = config(&["--api-key", "hush"]);
        assert_eq!(config.http.api_keys.len(), 1);
        assert!(!format!("{config:?}").contains("hush"));
    }

    #[test]
    fn several_keys_isolate_the_cache_unless_told_otherwise() {
        let isolated = |args: &[&str]| config(args).http.isolate_cache_by_key;
        assert!(isolated(&["--api-key", "a,b"]));
        assert!(!isolated(&["--api-key", "a"]) && !isolated(&["--api-key", "a,a"]));
        assert!(isolated(&["--api-key", "a", "--isolate-cache-by-key"]));
        assert!(!isolated(&[
            "--api-key",
            "a,b",
            "--isolate-cache-by-key=false"
        ]));
    }

    #[test]
    fn an_ipv6_address_is_bracketed() {
        let address = |hostname| config(&["--hostname", hostname]).listen_address(80);
        assert_eq!(address("::1"), "[::1]:80");
        assert_eq!(address("localhost"), "localhost:80");
    }
}
