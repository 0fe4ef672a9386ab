//! The answers of `/info`: the served model, its limits and the versions.

use gridwork_engine::Ready;
use gridwork_proto::v1::{InfoResponse, Task};
use serde::Serialize;
use utoipa::ToSchema;

use crate::encoder::{pipeline_tag, task_name};
use crate::generation::defaults::{self, Defaults, TokenRules};
use crate::state::AppState;

/// The served model, when it generates.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Info {
    #[serde(flatten)]
    pub model: ModelInfo,
    /// How the model writes tool calls, and where that was found.
    pub tool_call_format: String,
    /// How the model writes its reasoning, and where that was found.
    pub reasoning_format: String,
    /// True if a request's logits are the same to the bit whatever other requests run beside it. Otherwise they differ
    /// by rounding: in float32 hardly ever by as much as two tokens do, in 16 bits sometimes.
    pub batch_invariant: bool,
    /// True if the logits are the same to the bit however the request's tokens are divided into steps: as chunks of a
    /// prompt, after a preemption or a restart, after a cached prefix, as drafts.
    pub replay_invariant: bool,
    /// Reason why one of them is false; empty when both are true.
    pub invariance_reason: String,
    /// Number of ranks that the model is split over.
    pub num_shard: u32,
    /// Parts of the model that stay whole on every rank, and why.
    pub tensor_parallel_notes: Vec<String>,
    /// Tokens that end an answer, from the generation config and the tokenizer.
    pub eos_token_ids: Vec<u32>,
    /// Values of OpenAI's routes for fields that a request leaves out, as the model's generation config says.
    pub generation_defaults: Defaults,
    /// Rules of the generation config about which tokens may come, on all routes.
    pub token_rules: TokenRules,
    /// Keys of the generation config that would change answers and are not used.
    pub generation_config_ignored: Vec<String>,
    /// Maximum sequence length that the model's positions allow; 0 when its config gives none.
    pub max_context_tokens: u32,
    pub max_n: u32,
    pub max_best_of: usize,
    pub max_stop_sequences: usize,
    pub max_top_n_tokens: u32,
    pub max_input_tokens: u32,
    pub max_total_tokens: u32,
    /// Maximum number of tokens that one step computes besides decodes.
    pub max_batch_prefill_tokens: u32,
    /// Number of tokens that fit into the cache.
    pub max_batch_total_tokens: u64,
    /// Maximum number of sequences that run at once.
    pub max_batch_size: u32,
    pub max_client_batch_size: usize,
    /// Number of tokens in a cache block.
    pub block_size: u32,
    /// True if requests share cached keys and values of equal prefixes.
    pub prefix_cache: bool,
    /// True if they share them only with requests that send the same API key.
    pub isolate_cache_by_key: bool,
    /// Maximum number of draft tokens of a sequence in a step.
    pub speculate: u32,
    pub cache_capacity_tokens: u64,
    pub cache_capacity_blocks: u32,
    pub cache_bytes: u64,
    #[serde(flatten)]
    pub versions: Versions,
}

/// The served model, when it is an encoder.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct EncoderInfo {
    #[serde(flatten)]
    pub model: ModelInfo,
    /// Task that the model is served for, as `--task` has it.
    pub task: &'static str,
    /// Length of a vector; only of a model that embeds.
    pub embedding_size: Option<u32>,
    /// True if vectors have length 1 unless a request says otherwise; only of a model that embeds.
    pub normalizes: Option<bool>,
    /// Labels of a classifier or reranker.
    pub labels: Option<Vec<String>>,
    /// Maximum number of tokens of an input; also under its name in text-embeddings-inference.
    pub max_input_tokens: usize,
    pub max_input_length: usize,
    /// Maximum number of tokens in a batch.
    pub max_batch_tokens: u32,
    /// Maximum number of sequences in a batch.
    pub max_batch_size: u32,
    pub max_client_batch_size: usize,
    /// True if inputs that are too long are cut when a request does not say.
    pub auto_truncate: bool,
    #[serde(flatten)]
    pub versions: Versions,
}

/// The served model, by its task.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum InfoByTask {
    Generator(Box<Info>),
    Encoder(Box<EncoderInfo>),
}

/// The model, whatever it is served for.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ModelInfo {
    /// Name of the model on the command line.
    pub model_id: String,
    /// Revision on the command line.
    pub model_sha: Option<String>,
    pub model_pipeline_tag: &'static str,
    /// `model_type` of the model's config.
    pub model_type: String,
    pub model_dtype: String,
    pub model_device_type: String,
    /// Path that the model runs on: `paged`, `batched` or `solo`; of an encoder `flat`, `padded` or `single`.
    pub model_impl: String,
    /// Reason why it runs on no faster path; empty when it runs on the fastest.
    pub model_impl_reason: String,
    /// Attention implementation.
    pub attention: String,
    pub num_parameters: u64,
    pub weight_bytes: u64,
    pub vocab_size: u32,
    pub max_concurrent_requests: usize,
    pub validation_workers: usize,
}

/// Versions of router and shard.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Versions {
    pub router: &'static str,
    pub version: &'static str,
    pub sha: Option<&'static str>,
    pub docker_label: Option<&'static str>,
    pub shard_version: String,
    pub transformers_version: String,
    pub torch_version: String,
}

impl Info {
    pub fn new(state: &AppState, ready: &Ready) -> Self {
        let (config, info, limits) = (state.config(), &ready.info, &ready.limits);
        let requested = &config.settings.limits;
        let max_input_tokens = requested.max_input_tokens.unwrap_or(u32::MAX);
        Info {
            model: ModelInfo::new(state, info, Task::Generate),
            tool_call_format: state.chat_format().format.describe_calls(),
            reasoning_format: state.chat_format().format.describe_reasoning(),
            batch_invariant: info.batch_invariant,
            replay_invariant: info.replay_invariant,
            invariance_reason: info.invariance_reason.clone(),
            num_shard: info.world_size,
            tensor_parallel_notes: info.tensor_parallel_notes.clone(),
            eos_token_ids: info.eos_token_ids.clone(),
            generation_defaults: Defaults::of(info),
            token_rules: TokenRules::of(info),
            generation_config_ignored: defaults::ignored(info),
            max_context_tokens: info.max_context_tokens,
            max_n: requested.max_n,
            max_best_of: requested.max_best_of,
            max_stop_sequences: requested.max_stop_sequences,
            max_top_n_tokens: requested.max_top_n_tokens,
            max_input_tokens: max_input_tokens.min(limits.max_total_tokens - 1),
            max_total_tokens: limits.max_total_tokens,
            max_batch_prefill_tokens: limits.max_batch_prefill_tokens,
            max_batch_total_tokens: limits.capacity_tokens,
            max_batch_size: limits.max_sequences,
            max_client_batch_size: config.max_client_batch_size,
            block_size: limits.block_size_tokens,
            prefix_cache: limits.prefix_cache,
            isolate_cache_by_key: config.isolate_cache_by_key,
            speculate: limits.speculate,
            cache_capacity_tokens: limits.capacity_tokens,
            cache_capacity_blocks: limits.num_blocks,
            cache_bytes: limits.kv_cache_bytes,
            versions: Versions::new(info),
        }
    }
}

impl EncoderInfo {
    pub fn new(state: &AppState, info: &InfoResponse) -> Self {
        let encoder = state.encoder();
        let limits = encoder.limits;
        let task = info.task();
        let embeds = task == Task::Embed;
        let max_input_tokens = encoder.max_input_tokens(info);
        EncoderInfo {
            model: ModelInfo::new(state, info, task),
            task: task_name(task),
            embedding_size: embeds.then_some(info.embedding_size),
            normalizes: embeds.then_some(info.normalizes),
            labels: (!info.labels.is_empty()).then(|| info.labels.clone()),
            max_input_tokens,
            max_input_length: max_input_tokens,
            max_batch_tokens: limits.max_batch_tokens,
            max_batch_size: limits.max_batch_size,
            max_client_batch_size: limits.max_client_batch_size,
            auto_truncate: limits.auto_truncate,
            versions: Versions::new(info),
        }
    }
}

impl ModelInfo {
    fn new(state: &AppState, info: &InfoResponse, task: Task) -> Self {
        let settings = state.settings();
        ModelInfo {
            model_id: settings.launch.model_id.clone(),
            model_sha: settings.launch.revision.clone(),
            model_pipeline_tag: pipeline_tag(task),
            model_type: info.model_type.clone(),
            model_dtype: info.dtype.clone(),
            model_device_type: info.device.clone(),
            model_impl: info.model_impl.clone(),
            model_impl_reason: info.model_impl_reason.clone(),
            attention: info.attention.clone(),
            num_parameters: info.num_parameters,
            weight_bytes: info.weight_bytes,
            vocab_size: info.vocab_size,
            max_concurrent_requests: settings.limits.max_concurrent_requests,
            validation_workers: settings.limits.validation_workers,
        }
    }
}

impl Versions {
    fn new(info: &InfoResponse) -> Self {
        Versions {
            router: env!("CARGO_PKG_NAME"),
            version: env!("CARGO_PKG_VERSION"),
            sha: option_env!("GRIDWORK_GIT_SHA"),
            docker_label: option_env!("DOCKER_LABEL"),
            shard_version: info.shard_version.clone(),
            transformers_version: info.transformers_version.clone(),
            torch_version: info.torch_version.clone(),
        }
    }
}
