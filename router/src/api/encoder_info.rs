//! What `/info` says of an encoder.

use gridwork_proto::v1::{InfoResponse, Task};
use serde::Serialize;
use utoipa::ToSchema;

use crate::state::AppState;

/// What is served, and how, when it is an encoder.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct EncoderInfo {
    /// As it was asked for on the command line.
    pub model_id: String,
    /// Revision that was asked for.
    pub model_sha: Option<String>,
    /// What it is served for, as `--task` calls it.
    pub task: &'static str,
    pub model_pipeline_tag: &'static str,
    /// `model_type` of the model's config.
    pub model_type: String,
    pub model_dtype: String,
    pub model_device_type: String,
    /// Path that the model runs on: `flat`, `padded` or `single`.
    pub model_impl: String,
    /// Why it runs on no faster path; empty when it runs on the fastest.
    pub model_impl_reason: String,
    /// Attention implementation.
    pub attention: String,
    pub num_parameters: u64,
    pub weight_bytes: u64,
    pub vocab_size: u32,
    /// Numbers in a vector; only when it embeds.
    pub embedding_size: Option<u32>,
    /// Whether vectors have length 1 unless a request says otherwise; only when it embeds.
    pub normalizes: Option<bool>,
    /// Only of a classifier or reranker.
    pub labels: Option<Vec<String>>,
    /// Longest input, tokens; by the name of text-embeddings-inference too.
    pub max_input_tokens: usize,
    pub max_input_length: usize,
    pub max_concurrent_requests: usize,
    /// Tokens of a batch, at most.
    pub max_batch_tokens: u32,
    /// Sequences of a batch, at most.
    pub max_batch_size: u32,
    pub max_client_batch_size: usize,
    /// Whether inputs that are too long are cut when a request does not say.
    pub auto_truncate: bool,
    pub validation_workers: usize,
    pub router: &'static str,
    pub version: &'static str,
    pub sha: Option<&'static str>,
    pub docker_label: Option<&'static str>,
    pub shard_version: String,
    pub transformers_version: String,
    pub torch_version: String,
}

impl EncoderInfo {
    pub fn new(state: &AppState, info: &InfoResponse) -> Self {
        let (settings, encoder) = (state.settings(), state.encoder());
        let (task, model_pipeline_tag) = match info.task() {
            Task::Embed => ("embed", "feature-extraction"),
            Task::Classify => ("classify", "text-classification"),
            Task::Rerank => ("rerank", "text-ranking"),
            Task::FillMask => ("fill-mask", "fill-mask"),
            Task::Generate | Task::Unspecified => ("generate", "text-generation"),
        };
        let embeds = info.task() == Task::Embed;
        let max_input_tokens = encoder.max_input_tokens(info);
        EncoderInfo {
            model_id: settings.launch.model_id.clone(),
            model_sha: settings.launch.revision.clone(),
            task,
            model_pipeline_tag,
            model_type: info.model_type.clone(),
            model_dtype: info.dtype.clone(),
            model_device_type: info.device.clone(),
            model_impl: info.model_impl.clone(),
            model_impl_reason: info.model_impl_reason.clone(),
            attention: info.attention.clone(),
            num_parameters: info.num_parameters,
            weight_bytes: info.weight_bytes,
            vocab_size: info.vocab_size,
            embedding_size: embeds.then_some(info.embedding_size),
            normalizes: embeds.then_some(info.normalizes),
            labels: (!info.labels.is_empty()).then(|| info.labels.clone()),
            max_input_tokens,
            max_input_length: max_input_tokens,
            max_concurrent_requests: settings.limits.max_concurrent_requests,
            max_batch_tokens: encoder.limits().max_batch_tokens,
            max_batch_size: encoder.limits().max_batch_size,
            max_client_batch_size: encoder.limits().max_client_batch_size,
            auto_truncate: encoder.limits().auto_truncate,
            validation_workers: settings.limits.validation_workers,
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
