//! What the scheduler alone costs: for `benchmarks/router-overhead`, behind the feature `bench`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gridwork_proto::v1::{SamplingParameters, Step, StepResult};
use tokenizers::Tokenizer;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::metrics::EngineMetrics;
use crate::request::{
    CacheNamespace, Event, GenerationError, GenerationRequest, LogprobOptions, Priority,
    StopConditions,
};
use crate::scheduler::{Scheduler, SchedulerConfig};
use crate::sequence::detokenizer::Vocabulary;
use crate::sequence::lengths::LengthRule;
use crate::sequence::{Sequence, SequenceKey};

/// A scheduler, and a shard that answers at once.
pub struct SchedulerBench {
    scheduler: Scheduler,
    vocabulary: Arc<Vocabulary>,
    next_key: SequenceKey,
    events: Vec<UnboundedReceiver<Result<Event, GenerationError>>>,
    /// By row: tokens that the shard knows and has computed.
    rows: HashMap<u32, (usize, usize)>,
}

impl SchedulerBench {
    /// `num_blocks`: of 16 tokens.
    pub fn new(tokenizer: Arc<Tokenizer>, max_sequences: u32, num_blocks: u32) -> Self {
        let config = SchedulerConfig {
            block_size_tokens: 16,
            num_blocks,
            max_batch_tokens: 512,
            max_sequences,
            prefix_cache: true,
            draft_step_tokens: 0,
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
            rows: HashMap::new(),
        }
    }

    /// Adds a request with a prompt like no other.
    pub fn submit(&mut self, prompt_tokens: usize, max_new_tokens: u32) {
        let (sender, events) = unbounded_channel();
        let key = self.next_key;
        self.next_key += 1;
        let mut token_ids = vec![1; prompt_tokens];
        token_ids[0] = 100 + (key % 40_000) as u32;
        let request = GenerationRequest {
            token_ids,
            max_new_tokens,
            sampling: SamplingParameters {
                greedy: true,
                ..Default::default()
            },
            stop: StopConditions {
                ignore_eos: true,
                ..StopConditions::default()
            },
            logprobs: LogprobOptions::default(),
            priority: Priority::Normal,
            namespace: CacheNamespace::default(),
            skip_special_tokens: true,
            queue_timeout: None,
            place: Default::default(),
            span: tracing::Span::none(),
        };
        self.events.push(events);
        let sequence = Sequence::new(key, request, &self.vocabulary, sender, Instant::now());
        self.scheduler.add(sequence);
    }

    /// Requests that have not ended.
    pub fn num_sequences(&self) -> usize {
        self.scheduler.num_sequences()
    }

    /// Takes what clients were sent. Apart from the steps, since it touches all of them.
    pub fn read_events(&mut self) {
        self.events.retain_mut(|events| {
            while events.try_recv().is_ok() {}
            !events.is_closed()
        });
    }

    /// One step, made and its result taken; how long that took the scheduler, and the sequences and tokens in it.
    pub fn step(&mut self) -> (Duration, usize, usize) {
        let started = Instant::now();
        let step = self.scheduler.schedule(started);
        let made = started.elapsed();
        let Some(step) = step else {
            return (made, 0, 0);
        };
        let result = self.compute(&step);
        let started = Instant::now();
        let applied = self.scheduler.apply(&result, started);
        let taken = started.elapsed();
        assert_eq!(
            applied,
            Ok(()),
            "the shard of the benchmark answers as asked"
        );
        let tokens = step.num_tokens.iter().map(|count| *count as usize).sum();
        (made + taken, step.sequence_ids.len(), tokens)
    }

    fn compute(&mut self, step: &Step) -> StepResult {
        for row in &step.released {
            self.rows.remove(row);
        }
        for new in &step.admitted {
            let computed = new.num_computed_tokens as usize;
            self.rows.insert(new.id, (new.token_ids.len(), computed));
        }
        let mut result = StepResult {
            step_id: step.id,
            ..Default::default()
        };
        for (row, count) in step.sequence_ids.iter().zip(&step.num_tokens) {
            let Some((known, computed)) = self.rows.get_mut(row) else {
                continue;
            };
            *computed += *count as usize;
            if computed == known {
                *known += 1;
                result.sequence_ids.push(*row);
                result.token_ids.push(1000 + (*known % 1000) as u32);
            }
        }
        result
    }
}
