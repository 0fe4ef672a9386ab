//! Settings of an engine, and the limits that follow from them and from the shard.

use std::sync::Arc;
use std::time::Duration;

use gridwork_proto::v1::{InfoResponse, WarmupRequest, WarmupResponse};

use crate::error::StartError;
use crate::shard::client::ShardAddress;
use crate::token_table::TokenTable;

/// Maximum number of forced tokens that a sequence drafts in a step, without `--speculate`.
const MAX_FORCED_DRAFTS: u32 = 8;

/// Settings of an [`Engine`](crate::Engine).
#[derive(Debug, Clone)]
pub struct EngineConfig {
    pub shard: ShardAddress,
    /// Tokens in a cache block.
    pub block_size_tokens: u32,
    /// Token budget of a step: prefill gets the tokens that decodes leave.
    pub max_batch_prefill_tokens: u32,
    /// Maximum number of sequences that run at the same time.
    pub max_sequences: u32,
    /// Maximum length of a sequence, prompt and generated; `None`: the model's context.
    pub max_total_tokens: Option<u32>,
    /// Maximum number of cached tokens of running sequences; `None`: the whole cache.
    pub max_batch_total_tokens: Option<u32>,
    /// Maximum number of requests queued or running; the next one is refused.
    pub max_concurrent_requests: usize,
    pub queue_timeout: Duration,
    /// True if sequences with an equal beginning share its cached keys and values.
    pub prefix_cache: bool,
    /// Maximum number of drafts of a sequence in a step; 0: no speculation.
    pub speculate: u32,
    /// Time within which the shard must become ready, at the start and after a restart.
    pub startup_timeout: Duration,
    /// Limit of a step while no step before it is known; see [`crate::shard::watchdog`].
    pub shard_timeout: Duration,
    /// Tokens that end a sequence, in addition to the shard's.
    pub more_eos_token_ids: Vec<u32>,
}

/// The shard's description and the limits that follow from it; known once the engine is ready.
#[derive(Debug, Clone)]
pub struct Ready {
    pub info: InfoResponse,
    pub limits: Limits,
    /// Texts of all tokens of the tokenizer.
    pub tokens: Arc<TokenTable>,
}

#[derive(Debug, Clone)]
pub struct Limits {
    pub block_size_tokens: u32,
    pub num_blocks: u32,
    /// Tokens that fit into the cache.
    pub capacity_tokens: u64,
    pub kv_cache_bytes: u64,
    /// Maximum length of a sequence, prompt and generated.
    pub max_total_tokens: u32,
    pub max_batch_prefill_tokens: u32,
    pub max_sequences: u32,
    pub max_concurrent_requests: usize,
    /// True if there is a prefix cache: the configuration enables it, and the model's path can share blocks.
    pub prefix_cache: bool,
    /// Maximum number of guessed drafts of a sequence in a step.
    pub speculate: u32,
    /// Maximum number of drafts of a sequence in a step, be they guessed or forced by a grammar.
    pub max_drafts: u32,
    /// Number of tokens in a step up to which drafts are computed.
    pub draft_step_tokens: u32,
}

impl EngineConfig {
    /// The warm-up that a shard with this description is asked for.
    pub(super) fn warmup_request(
        &self,
        info: &InfoResponse,
        tokens: &TokenTable,
    ) -> Result<WarmupRequest, StartError> {
        Ok(WarmupRequest {
            block_size_tokens: self.block_size_tokens,
            // Decodes are never left out of a step, so a step may exceed its budget by them.
            max_batch_tokens: self.max_batch_prefill_tokens + self.max_sequences,
            max_sequences: self.max_sequences,
            max_total_tokens: self.max_sequence_tokens(info)?,
            prefix_cache: self.has_prefix_cache(info),
            max_drafts: self.max_drafts(info)?,
            tokens: Some(tokens.message(info.vocab_size, &self.end_token_ids(info))),
        })
    }

    /// Tokens that end a sequence: the shard's and further ones that the model knows.
    pub(super) fn end_token_ids(&self, info: &InfoResponse) -> Vec<u32> {
        let mut ids = info.eos_token_ids.clone();
        for &id in &self.more_eos_token_ids {
            if id < info.vocab_size && !ids.contains(&id) {
                ids.push(id);
            }
        }
        ids
    }

    /// The limits that follow from this configuration and from the shard.
    pub(super) fn limits(
        &self,
        info: &InfoResponse,
        warmup: &WarmupResponse,
    ) -> Result<Limits, StartError> {
        let block_size_tokens = self.block_size_tokens;
        let num_blocks = self
            .max_batch_total_tokens
            .map_or(warmup.num_blocks, |tokens| {
                warmup.num_blocks.min(tokens.div_ceil(block_size_tokens))
            });
        let capacity_tokens = u64::from(num_blocks) * u64::from(block_size_tokens);
        let max_total_tokens = match self.max_sequence_tokens(info)? {
            0 => u32::try_from(capacity_tokens).unwrap_or(u32::MAX),
            limit => limit,
        };
        if capacity_tokens < u64::from(max_total_tokens) || capacity_tokens == 0 {
            return Err(StartError::CacheTooSmall {
                capacity_tokens,
                max_total_tokens,
            });
        }
        Ok(Limits {
            block_size_tokens,
            num_blocks,
            capacity_tokens,
            kv_cache_bytes: warmup.kv_cache_bytes,
            max_total_tokens,
            max_batch_prefill_tokens: self.max_batch_prefill_tokens,
            max_sequences: self.max_sequences,
            max_concurrent_requests: self.max_concurrent_requests,
            prefix_cache: self.has_prefix_cache(info),
            speculate: self.speculate,
            max_drafts: self.max_drafts(info)?,
            draft_step_tokens: info.draft_step_tokens,
        })
    }

    /// Maximum length of a sequence by configuration and model; 0 when neither sets a limit.
    fn max_sequence_tokens(&self, info: &InfoResponse) -> Result<u32, StartError> {
        match (self.max_total_tokens, info.max_context_tokens) {
            (Some(max_total_tokens), context_tokens)
                if context_tokens > 0 && max_total_tokens > context_tokens =>
            {
                Err(StartError::ContextTooShort {
                    max_total_tokens,
                    context_tokens,
                })
            }
            (Some(max_total_tokens), _) => Ok(max_total_tokens),
            (None, context_tokens) => Ok(context_tokens),
        }
    }

    /// Number of drafts that the shard must be ready for.
    fn max_drafts(&self, info: &InfoResponse) -> Result<u32, StartError> {
        if self.speculate > 0 && info.draft_step_tokens == 0 {
            return Err(StartError::NoDrafts {
                speculate: self.speculate,
                model_impl: info.model_impl.clone(),
                reason: info.model_impl_reason.clone(),
            });
        }
        if self.speculate == 0 && jumps_ahead(info) {
            return Ok(MAX_FORCED_DRAFTS);
        }
        Ok(self.speculate)
    }

    fn has_prefix_cache(&self, info: &InfoResponse) -> bool {
        self.prefix_cache && info.shares_blocks
    }
}

/// True if the tokens that a grammar forces are drafted without `--speculate`: where a few more tokens in a step cost
/// little, no step begins before the last one ends, and no token depends on how a text is divided into steps.
fn jumps_ahead(info: &InfoResponse) -> bool {
    info.device == "cpu"
        && info.draft_step_tokens > 0
        && info.batch_invariant
        && info.replay_invariant
}
