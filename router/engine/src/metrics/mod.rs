//! The engine's and the encoder's metrics. To add one, add a row here and record it where the value is known;
//! `make docs` writes `docs/metrics.md`.

mod table;

use std::time::Duration;

use crate::error::GenerationError;
use crate::request::Finish;
use crate::{metric_functions, metric_handles};

pub use table::{Kind, Metric, Section, Unit};

metric_handles! {
    /// Handles of the engine's metrics.
    #[derive(Clone)]
    pub(crate) struct EngineMetrics {
        queue = histogram("gridwork_request_queue_seconds", Latency, Generations,
            "From admission to the first step");
        inference = histogram("gridwork_request_inference_seconds", Seconds, Generations,
            "From the first step to the last token");
        first_token = histogram("gridwork_time_to_first_token_seconds", Latency, Generations,
            "From admission to the first token");
        per_token = histogram("gridwork_time_per_output_token_seconds", Latency, Generations,
            "Mean time between the tokens of a generation, after its first");
        prompt_tokens = counter("gridwork_prompt_tokens_total", Tokens, Generations,
            "Prompt tokens of the admitted generations");
        cached_prompt_tokens = counter("gridwork_cached_prompt_tokens_total", Tokens, Generations,
            "Prompt tokens of started generations that were found in the prefix cache and not computed");
        generated_tokens = counter("gridwork_generated_tokens_total", Tokens, Generations,
            "Tokens generated");
        aborted = counter("gridwork_requests_aborted_total", Count, Generations,
            "Generations whose client disconnected before the end");
        preemptions = counter("gridwork_preemptions_total", Sequences, Generations,
            "Sequences put back into the queue because the cache was full");
        queue_size = gauge("gridwork_queue_size", Sequences, Scheduler,
            "Generations that wait to be started");
        running = gauge("gridwork_running_sequences", Sequences, Scheduler,
            "Sequences that are being computed");
        blocks_used = gauge("gridwork_cache_blocks_used", Blocks, Scheduler,
            "Cache blocks that hold running sequences");
        blocks_total = gauge("gridwork_cache_blocks_total", Blocks, Scheduler,
            "Cache blocks in total");
        cache_usage = gauge("gridwork_kv_cache_usage_ratio", Count, Scheduler,
            "Share of the cache's blocks that sequences hold, from 0 to 1; blocks that are only cached are not held");
        blocks_cached = gauge("gridwork_prefix_cache_blocks", Blocks, Scheduler,
            "Full blocks that can be found by their tokens, in use or not");
        lookup_tokens = counter("gridwork_prefix_cache_lookup_tokens_total", Tokens, Scheduler,
            "Tokens of sequences that were looked up in the prefix cache; preempted sequences are looked up again");
        hit_tokens = counter("gridwork_prefix_cache_hit_tokens_total", Tokens, Scheduler,
            "Looked-up tokens that were found in the prefix cache");
        evicted_blocks = counter("gridwork_prefix_cache_evicted_blocks_total", Blocks, Scheduler,
            "Blocks evicted from the prefix cache because sequences needed them");
        drafted_tokens = counter("gridwork_speculation_drafted_tokens_total", Tokens, Scheduler,
            "Tokens drafted (guessed with `--speculate`, or forced by a grammar) and computed");
        accepted_tokens = counter("gridwork_speculation_accepted_tokens_total", Tokens, Scheduler,
            "Drafted tokens that were accepted and saved a step");
        steps = counter("gridwork_steps_total", Count, Scheduler,
            "Steps that the shard has computed");
        step_sequences = histogram("gridwork_step_sequences", Sequences, Scheduler,
            "Sequences in a step");
        step_tokens = histogram("gridwork_step_tokens", Tokens, Scheduler,
            "Tokens that a step computes");
        step_duration = histogram("gridwork_step_seconds", Seconds, Scheduler,
            "From sending a step to receiving its result, in the router");
        step_forward = histogram("gridwork_step_forward_seconds", Seconds, Scheduler,
            "The model's part of a step, measured by the shard");
        step_sample = histogram("gridwork_step_sample_seconds", Seconds, Scheduler,
            "The sampling part of a step, measured by the shard");
        shard_restarts = counter("gridwork_shard_restarts_total", Count, Scheduler,
            "Times that the shard was lost");
        integrity_violations = counter("gridwork_scheduler_integrity_violations_total", Count, Scheduler,
            "Violated invariants that the scheduler found; anything but 0 is a bug");
    }
}

metric_functions! {
    const LABELLED;
    generation_failures(kind) = counter("gridwork_generation_failures_total", Count, Generations,
        "Generations that failed after they were admitted: `nan_logits`, `shard_killer`, `queue_timeout`, `unread`, `shard`, `shutdown`");
}

/// Every metric that this crate records.
pub fn declared() -> impl Iterator<Item = &'static Metric> {
    EngineMetrics::METRICS.iter().chain(LABELLED)
}

impl EngineMetrics {
    pub fn state(&self, waiting: usize, running: usize, blocks_used: usize, blocks_total: usize) {
        self.queue_size.set(waiting as f64);
        self.running.set(running as f64);
        self.blocks_used.set(blocks_used as f64);
        self.blocks_total.set(blocks_total as f64);
        self.cache_usage.set(usage_ratio(blocks_used, blocks_total));
    }

    /// Reports the size of the prefix cache, and the blocks evicted since the last report.
    pub fn cache(&self, blocks: usize, evicted: u64) {
        self.blocks_cached.set(blocks as f64);
        self.evicted_blocks.increment(evicted);
    }

    /// Counts one look-up in the prefix cache.
    pub fn looked_up(&self, tokens: usize, found: usize) {
        self.lookup_tokens.increment(tokens as u64);
        self.hit_tokens.increment(found as u64);
    }

    /// Counts a sequence's drafts in a step, and how many of them were accepted.
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

    /// Reports a finished request. When its first token was its last, this also reports the time to the first token.
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
        generation_failures(error.kind()).increment(1);
    }
}

/// Share of the cache's blocks that sequences hold. A cache without blocks has none in use.
fn usage_ratio(blocks_used: usize, blocks_total: usize) -> f64 {
    blocks_used as f64 / blocks_total.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::usage_ratio;

    #[test]
    fn the_usage_of_a_cache_is_from_0_to_1() {
        for (used, total, expected) in [(0, 8, 0.0), (2, 8, 0.25), (8, 8, 1.0), (0, 0, 0.0)] {
            assert_eq!(usage_ratio(used, total), expected, "{used} of {total}");
        }
    }
}
