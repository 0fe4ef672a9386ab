//! What an operator asks: is it well, what does it serve, how is it doing.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::encoder_info::EncoderInfo;
use super::tgi::types::ErrorResponse;
use crate::error::{ApiError, Dialect, ErrorKind};
use crate::generation::defaults::{self as generation_defaults, Defaults};
use crate::state::AppState;

/// What is served, and how.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Info {
    /// As it was asked for on the command line.
    pub model_id: String,
    /// Revision that was asked for.
    pub model_sha: Option<String>,
    pub model_pipeline_tag: Option<String>,
    /// `model_type` of the model's config.
    pub model_type: String,
    pub model_dtype: String,
    pub model_device_type: String,
    /// Path that the model runs on: `paged`, `batched` or `solo`.
    pub model_impl: String,
    /// Why it runs on no faster path; empty when it runs on the fastest.
    pub model_impl_reason: String,
    /// Whether a request's logits are the same to the bit whatever other requests run beside it. Where not, they differ
    /// by rounding: in float32 hardly ever by as much as two tokens do, in 16 bits sometimes.
    pub batch_invariant: bool,
    /// Whether they are the same to the bit however the request's tokens are divided into steps: as chunks of a prompt,
    /// after a preemption or a restart, behind a cached prefix, as drafts.
    pub replay_invariant: bool,
    /// Why not; empty when both hold.
    pub invariance_reason: String,
    /// Attention implementation.
    pub attention: String,
    pub num_parameters: u64,
    pub weight_bytes: u64,
    /// Ranks that the model is split over.
    pub num_shard: u32,
    pub vocab_size: u32,
    /// Tokens that end an answer: those of the generation config, and the tokenizer's own.
    pub eos_token_ids: Vec<u32>,
    /// What OpenAI's routes take for fields that a request leaves out, as the model's generation config says.
    pub generation_defaults: Defaults,
    /// Keys of the generation config that would change answers and are not used.
    pub generation_config_ignored: Vec<String>,
    /// Longest sequence that the model's positions allow; 0 when its config gives none.
    pub max_context_tokens: u32,
    pub max_concurrent_requests: usize,
    pub max_n: u32,
    pub max_best_of: usize,
    pub max_stop_sequences: usize,
    pub max_top_n_tokens: u32,
    pub max_input_tokens: u32,
    pub max_total_tokens: u32,
    /// Tokens that one step computes, at most, besides decodes.
    pub max_batch_prefill_tokens: u32,
    /// Tokens that fit into the cache.
    pub max_batch_total_tokens: u64,
    /// Sequences that run at once, at most.
    pub max_batch_size: u32,
    pub max_client_batch_size: usize,
    pub validation_workers: usize,
    /// Tokens in a cache block.
    pub block_size: u32,
    /// Whether requests share the cached keys and values of what is the same in them.
    pub prefix_cache: bool,
    /// Whether they share them only with requests that send the same API key.
    pub isolate_cache_by_key: bool,
    /// Tokens of a sequence that are guessed ahead in a step, at most.
    pub speculate: u32,
    pub cache_capacity_tokens: u64,
    pub cache_capacity_blocks: u32,
    pub cache_bytes: u64,
    pub router: &'static str,
    pub version: &'static str,
    pub sha: Option<&'static str>,
    pub docker_label: Option<&'static str>,
    pub shard_version: String,
    pub transformers_version: String,
    pub torch_version: String,
}

/// What is served, and how.
#[utoipa::path(
    get, path = "/info", tag = "Server",
    responses(
        (status = 200, description = "What is served; of an encoder, `EncoderInfo`", body = Info),
        (status = 503, description = "The model is still loading", body = ErrorResponse),
    )
)]
pub async fn info(State(state): State<AppState>) -> Response {
    if let Some(info) = state.encoder().loaded() {
        return Json(EncoderInfo::new(&state, &info)).into_response();
    }
    let ready = match state.ready() {
        Ok(ready) => ready,
        Err(error) => return error.into_uncounted_response(Dialect::Tgi),
    };
    let (config, info, limits) = (state.config(), &ready.info, &ready.limits);
    let (launch, asked) = (&config.settings.launch, &config.settings.limits);
    Json(Info {
        model_id: launch.model_id.clone(),
        model_sha: launch.revision.clone(),
        model_pipeline_tag: Some("text-generation".into()),
        model_type: info.model_type.clone(),
        model_dtype: info.dtype.clone(),
        model_device_type: info.device.clone(),
        model_impl: info.model_impl.clone(),
        model_impl_reason: info.model_impl_reason.clone(),
        batch_invariant: info.batch_invariant,
        replay_invariant: info.replay_invariant,
        invariance_reason: info.invariance_reason.clone(),
        attention: info.attention.clone(),
        num_parameters: info.num_parameters,
        weight_bytes: info.weight_bytes,
        num_shard: info.world_size,
        vocab_size: info.vocab_size,
        eos_token_ids: info.eos_token_ids.clone(),
        generation_defaults: Defaults::of(info),
        generation_config_ignored: generation_defaults::ignored(info),
        max_context_tokens: info.max_context_tokens,
        max_concurrent_requests: asked.max_concurrent_requests,
        max_n: asked.max_n,
        max_best_of: asked.max_best_of,
        max_stop_sequences: asked.max_stop_sequences,
        max_top_n_tokens: asked.max_top_n_tokens,
        max_input_tokens: asked
            .max_input_tokens
            .unwrap_or(u32::MAX)
            .min(limits.max_total_tokens - 1),
        max_total_tokens: limits.max_total_tokens,
        max_batch_prefill_tokens: limits.max_batch_tokens,
        max_batch_total_tokens: limits.capacity_tokens,
        max_batch_size: limits.max_sequences,
        max_client_batch_size: config.max_client_batch_size,
        validation_workers: asked.validation_workers,
        block_size: limits.block_size_tokens,
        prefix_cache: limits.prefix_cache,
        isolate_cache_by_key: config.isolate_cache_by_key,
        speculate: limits.speculate,
        cache_capacity_tokens: limits.capacity_tokens,
        cache_capacity_blocks: limits.num_blocks,
        cache_bytes: limits.kv_cache_bytes,
        router: env!("CARGO_PKG_NAME"),
        version: env!("CARGO_PKG_VERSION"),
        sha: option_env!("GRIDWORK_GIT_SHA"),
        docker_label: option_env!("DOCKER_LABEL"),
        shard_version: info.shard_version.clone(),
        transformers_version: info.transformers_version.clone(),
        torch_version: info.torch_version.clone(),
    })
    .into_response()
}

/// Whether requests would be answered now.
#[utoipa::path(
    get, path = "/health", tag = "Server",
    responses(
        (status = 200, description = "Everything is well"),
        (status = 503, description = "Loading, hanging, restarting or shutting down", body = ErrorResponse),
    )
)]
pub async fn health(State(state): State<AppState>) -> Response {
    let encoder = state.encoder().handle();
    let trouble = state.supervision().trouble();
    if (state.engine().is_healthy() || encoder.is_healthy())
        && !state.engine().is_draining()
        && trouble.is_none()
    {
        return ().into_response();
    }
    let message = match state.ready() {
        Err(error) if encoder.loaded().is_none() => error.message,
        _ if state.engine().is_draining() => "the server is shutting down".into(),
        _ => trouble.unwrap_or_else(|| "the shard is being restarted".into()),
    };
    let error = ApiError {
        retry_after_s: Some(5),
        ..ApiError::new(ErrorKind::Unavailable, message)
    };
    let mut response = error.into_uncounted_response(Dialect::Tgi);
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// The same as `/health`, where Amazon SageMaker asks.
#[utoipa::path(
    get, path = "/ping", tag = "Server",
    responses(
        (status = 200, description = "Everything is well"),
        (status = 503, description = "Loading, hanging, restarting or shutting down", body = ErrorResponse),
    )
)]
pub async fn ping(state: State<AppState>) -> Response {
    health(state).await
}

/// Metrics in Prometheus' text format.
#[utoipa::path(get, path = "/metrics", tag = "Server", responses((status = 200, description = "Metrics", body = String)))]
pub async fn metrics(State(state): State<AppState>) -> Response {
    (
        [(
            header::CONTENT_TYPE,
            "text/plain; version=0.0.4; charset=utf-8",
        )],
        state.render_metrics(),
    )
        .into_response()
}
