//! A shard without a model: it answers every step as soon as it has read it, or after a fixed time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use gridwork_testing::FakeShard;

/// First of the sampled tokens. In most vocabularies ordinary words lie here, and no special token does.
const FIRST_TOKEN: u32 = 1_000;
const NUM_TOKENS: u32 = 500;

/// Times at which the tokens of each sequence were sampled, by the first token of its prompt.
pub type SentTimes = Arc<Mutex<HashMap<u32, Vec<Instant>>>>;

/// A shard whose steps take `step_time`. `sent` records the times of its tokens; without it nothing is recorded, so
/// that throughput is not disturbed.
pub fn null_shard(step_time: Duration, sent: Option<SentTimes>) -> FakeShard {
    let mut shard = FakeShard::generating(move |sequence| {
        if let Some(sent) = &sent
            && let Ok(mut sent) = sent.lock()
        {
            let times = sent.entry(sequence.first_token).or_default();
            times.push(sequence.computed_at);
        }
        FIRST_TOKEN + sequence.num_tokens % NUM_TOKENS
    });
    shard.step_time = step_time;
    shard.info.shard_version = env!("CARGO_PKG_VERSION").into();
    shard.info.model_type = "null".into();
    shard.info.model_impl = "paged".into();
    shard.info.attention = "none".into();
    shard.info.dtype = "none".into();
    shard.info.device = "none".into();
    shard.info.vocab_size = 49_152;
    shard.info.max_context_tokens = 8_192;
    shard.info.world_size = 1;
    shard.info.shares_blocks = true;
    shard.warmup.num_blocks = 1 << 18;
    shard
}
