//! What the engine reports, as handles that are looked up once.

use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

use crate::request::{Finish, GenerationError};

#[derive(Clone)]
pub(crate) struct EngineMetrics {
    pub aborted: Counter,
    pub preemptions: Counter,
    pub shard_restarts: Counter,
    pub integrity_violations: Counter,
    pub prompt_tokens: Counter,
    pub cached_prompt_tokens: Counter,
    lookup_tokens: Counter,
    hit_tokens: Counter,
    evicted_blocks: Counter,
    generated_tokens: Counter,
    drafted_tokens: Counter,
    accepted_tokens: Counter,
    steps: Counter,
    queue_size: Gauge,
    running: Gauge,
    blocks_used: Gauge,
    blocks_total: Gauge,
    blocks_cached: Gauge,
    first_token: Histogram,
    per_token: Histogram,
    queue: Histogram,
    inference: Histogram,
    step_sequences: Histogram,
    step_tokens: Histogram,
    step_duration: Histogram,
    step_forward: Histogram,
    step_sample: Histogram,
}

impl EngineMetrics {
    /// Registers with the recorder that is installed now.
    pub fn new() -> Self {
        let metrics = EngineMetrics {
            aborted: counter!("gridwork_requests_aborted_total"),
            preemptions: counter!("gridwork_preemptions_total"),
            shard_restarts: counter!("gridwork_shard_restarts_total"),
            integrity_violations: counter!("gridwork_scheduler_integrity_violations_total"),
            prompt_tokens: counter!("gridwork_prompt_tokens_total"),
            cached_prompt_tokens: counter!("gridwork_cached_prompt_tokens_total"),
            lookup_tokens: counter!("gridwork_prefix_cache_lookup_tokens_total"),
            hit_tokens: counter!("gridwork_prefix_cache_hit_tokens_total"),
            evicted_blocks: counter!("gridwork_prefix_cache_evicted_blocks_total"),
            generated_tokens: counter!("gridwork_generated_tokens_total"),
            drafted_tokens: counter!("gridwork_speculation_drafted_tokens_total"),
            accepted_tokens: counter!("gridwork_speculation_accepted_tokens_total"),
            steps: counter!("gridwork_steps_total"),
            queue_size: gauge!("gridwork_queue_size"),
            running: gauge!("gridwork_running_sequences"),
            blocks_used: gauge!("gridwork_cache_blocks_used"),
            blocks_total: gauge!("gridwork_cache_blocks_total"),
            blocks_cached: gauge!("gridwork_prefix_cache_blocks"),
            first_token: histogram!("gridwork_time_to_first_token_seconds"),
            per_token: histogram!("gridwork_time_per_output_token_seconds"),
            queue: histogram!("gridwork_request_queue_seconds"),
            inference: histogram!("gridwork_request_inference_seconds"),
            step_sequences: histogram!("gridwork_step_sequences"),
            step_tokens: histogram!("gridwork_step_tokens"),
            step_duration: histogram!("gridwork_step_seconds"),
            step_forward: histogram!("gridwork_step_forward_seconds"),
            step_sample: histogram!("gridwork_step_sample_seconds"),
        };
        for counter in [
            &metrics.aborted,
            &metrics.preemptions,
            &metrics.shard_restarts,
            &metrics.integrity_violations,
            &metrics.prompt_tokens,
            &metrics.cached_prompt_tokens,
            &metrics.lookup_tokens,
            &metrics.hit_tokens,
            &metrics.evicted_blocks,
            &metrics.generated_tokens,
            &metrics.drafted_tokens,
            &metrics.accepted_tokens,
            &metrics.steps,
        ] {
            counter.increment(0);
        }
        metrics
    }

    pub fn state(&self, waiting: usize, running: usize, blocks_used: usize, blocks_total: usize) {
        self.queue_size.set(waiting as f64);
        self.running.set(running as f64);
        self.blocks_used.set(blocks_used as f64);
        self.blocks_total.set(blocks_total as f64);
    }

    /// The prefix cache holds so many blocks; so many were evicted since the last time.
    pub fn cache(&self, blocks: usize, evicted: u64) {
        self.blocks_cached.set(blocks as f64);
        self.evicted_blocks.increment(evicted);
    }

    /// A sequence was looked up in the prefix cache.
    pub fn looked_up(&self, tokens: usize, found: usize) {
        self.lookup_tokens.increment(tokens as u64);
        self.hit_tokens.increment(found as u64);
    }

    /// A step computed so many drafts of a sequence, and so many of them became its tokens.
    pub fn drafted(&self, drafts: usize, accepted: usize) {
        self.drafted_tokens.increment(drafts as u64);
        self.accepted_tokens.increment(accepted as u64);
    }

    pub fn queued(&self, waited: Duration) {
        self.queue.record(waited.as_secs_f64());
    }

    pub fn step(&self, sequences: usize, tokens: usize) {
        self.step_sequences.record(sequences as f64);
        self.step_tokens.record(tokens as f64);
    }

    pub fn step_done(&self, generated: u64, duration: Duration, forward_us: u64, sample_us: u64) {
        self.steps.increment(1);
        self.generated_tokens.increment(generated);
        self.step_duration.record(duration.as_secs_f64());
        self.step_forward.record(forward_us as f64 * 1e-6);
        self.step_sample.record(sample_us as f64 * 1e-6);
    }

    pub fn first_token(&self, since_submitted: Duration) {
        self.first_token.record(since_submitted.as_secs_f64());
    }

    /// A request has ended well; also records its first token when that was its last.
    pub fn finished(&self, finish: &Finish) {
        if finish.num_generated_tokens == 1 {
            self.first_token(finish.timing.first_token);
        } else {
            let decoding = (finish.timing.queue + finish.timing.inference)
                .saturating_sub(finish.timing.first_token);
            self.per_token
                .record(decoding.as_secs_f64() / f64::from(finish.num_generated_tokens - 1));
        }
        self.inference.record(finish.timing.inference.as_secs_f64());
    }

    pub fn failed(&self, error: &GenerationError) {
        let kind = match error {
            GenerationError::NanLogits => "nan_logits",
            GenerationError::ShardKiller { .. } => "shard_killer",
            GenerationError::QueueTimeout { .. } => "queue_timeout",
            GenerationError::Unread { .. } => "unread",
            GenerationError::Shard(_) => "shard",
            GenerationError::Shutdown | GenerationError::GivenUp(_) => "shutdown",
        };
        counter!("gridwork_generation_failures_total", "kind" => kind).increment(1);
    }
}
