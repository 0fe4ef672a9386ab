//! The scheduler alone, for `benchmarks/router-overhead`. Behind the feature `bench`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use gridwork_proto::v1::{Step, StepResult};
use tokenizers::Tokenizer;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::error::GenerationError;
use crate::metrics::EngineMetrics;
use crate::request::{Event, GenerationRequest};
use crate::scheduler::{Scheduler, SchedulerConfig};
use crate::sequence::detokenizer::Vocabulary;
use crate::sequence::lengths::LengthRule;
use crate::sequence::{Sequence, SequenceKey};

/// A scheduler without its task. The benchmark computes the steps.
pub struct SchedulerBench {
    scheduler: Scheduler,
    vocabulary: Arc<Vocabulary>,
    next_key: SequenceKey,
    events: Vec<UnboundedReceiver<Result<Event, GenerationError>>>,
}

impl SchedulerBench {
    /// A scheduler over `num_blocks` cache blocks of 16 tokens.
    pub fn new(tokenizer: Arc<Tokenizer>, max_sequences: u32, num_blocks: u32) -> Self {
        let config = SchedulerConfig {
            block_size_tokens: 16,
            num_blocks,
            max_batch_prefill_tokens: 512,
            max_sequences,
            prefix_cache: true,
            max_drafts: 0,
            draft_step_tokens: 0,
            drafts_only_forced: false,
            queue_timeout: Duration::from_secs(3600),
            lengths: LengthRule::default(),
        };
        let vocabulary = Arc::new(Vocabulary::new(tokenizer));
        let metrics = EngineMetrics::new();
        SchedulerBench {
            scheduler: Scheduler::new(config, vocabulary.clone(), vec![], metrics),
            vocabulary,
            next_key: 0,
            events: Vec::new(),
        }
    }

    /// Adds a request whose prompt shares no block with another.
    pub fn submit(&mut self, prompt_tokens: usize, max_new_tokens: u32) {
        let (sender, events) = unbounded_channel();
        let key = self.next_key;
        self.next_key += 1;
        let mut token_ids = vec![1; prompt_tokens];
        token_ids[0] = 100 + (key % 40_000) as u32;
        let mut request = GenerationRequest::greedy(token_ids, max_new_tokens);
        request.stop.ignore_eos = true;
        self.events.push(events);
        let sequence = Sequence::new(key, request, &self.vocabulary, sender, Instant::now());
        self.scheduler.add(sequence);
    }

    /// Number of requests that have not ended.
    pub fn num_sequences(&self) -> usize {
        self.scheduler.num_sequences()
    }

    /// Reads the events of all clients. Separate from the steps, since it touches every client.
    pub fn read_events(&mut self) {
        self.events.retain_mut(|events| {
            while events.try_recv().is_ok() {}
            !events.is_closed()
        });
    }

    /// Schedules a step, has `compute` answer it, and applies the result. Returns the scheduler's time, and the numbers
    /// of sequences and tokens in the step.
    pub fn step(&mut self, compute: impl FnOnce(&Step) -> StepResult) -> (Duration, usize, usize) {
        let started = Instant::now();
        let step = self.scheduler.schedule(started);
        let made = started.elapsed();
        let Some(step) = step else {
            return (made, 0, 0);
        };
        let result = compute(&step);
        let started = Instant::now();
        let applied = self.scheduler.apply(&result, started);
        let taken = started.elapsed();
        assert_eq!(
            applied,
            Ok(()),
            "the benchmark computes the step that was scheduled"
        );
        let tokens = step.num_tokens.iter().map(|count| *count as usize).sum();
        (made + taken, step.sequence_ids.len(), tokens)
    }
}
