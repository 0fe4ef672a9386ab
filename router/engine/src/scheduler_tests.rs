//! The scheduler against a shard that follows the contract to the letter and remembers who wrote what where.

use std::collections::{HashMap, HashSet, VecDeque};

use gridwork_proto::v1::{NewSequence, SamplingParameters};
use proptest::prelude::*;
use tokenizers::Tokenizer;
use tokenizers::models::wordlevel::WordLevel;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::*;
use crate::request::{
    CacheNamespace, Event, FinishReason, GenerationRequest, LogprobOptions, StopConditions,
};

const BLOCK_SIZE: usize = 4;

/// A "model" whose next token depends on everything before it.
fn next_token(tokens: &[u32]) -> u32 {
    tokens.iter().fold(7u32, |hash, token| {
        hash.wrapping_mul(31).wrapping_add(*token)
    }) % 1000
}

/// What `prompt` leads to.
fn continuation(prompt: &[u32], count: usize) -> Vec<u32> {
    let mut tokens = prompt.to_vec();
    for _ in 0..count {
        tokens.push(next_token(&tokens));
    }
    tokens.split_off(prompt.len())
}

/// What a slot of the cache was computed from; `None`: from what a failed step left behind.
type Slot = Option<(u64, Vec<u32>)>;

/// The shard's side of the contract, with a cache whose slots remember what they were computed from.
#[derive(Default)]
struct Shard {
    sequences: HashMap<u32, ShardSequence>,
    slots: HashMap<(u32, usize), Slot>,
    last_step: u64,
    most_tokens: usize,
    num_computed_tokens: usize,
}

/// How a step goes wrong.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    None,
    /// It raises an exception.
    Step,
    /// This one of its sequences has NaN logits, if it samples.
    Nan(usize),
}

/// Sampled where what a failed step left behind was read: no client may ever see it.
const GARBAGE: u32 = 666_666;

struct ShardSequence {
    /// Stands for everything that tokens do not say: requests that must not share differ in it.
    seed: u64,
    failed: bool,
    tokens: Vec<u32>,
    num_computed: usize,
    blocks: Vec<u32>,
}

impl Shard {
    fn run(&mut self, step: &Step, fault: Fault) -> StepResult {
        assert_eq!(step.id, self.last_step + 1);
        self.last_step = step.id;
        for row in &step.released {
            assert!(
                self.sequences.remove(row).is_some(),
                "row {row} was free already"
            );
        }
        for NewSequence {
            id,
            token_ids,
            num_computed_tokens,
            sampling,
            ..
        } in &step.admitted
        {
            let sequence = ShardSequence {
                seed: sampling.as_ref().map_or(0, |sampling| sampling.seed),
                failed: false,
                tokens: token_ids.clone(),
                num_computed: *num_computed_tokens as usize,
                blocks: Vec::new(),
            };
            assert!(
                self.sequences.insert(*id, sequence).is_none(),
                "row {id} is taken"
            );
        }
        let mut result = StepResult {
            step_id: step.id,
            ..Default::default()
        };
        let mut seen = HashSet::new();
        let mut new_blocks = step.new_blocks.iter();
        self.most_tokens = self
            .most_tokens
            .max(step.num_tokens.iter().sum::<u32>() as usize);
        self.num_computed_tokens += step.num_tokens.iter().sum::<u32>() as usize;
        // All is written before anything is read.
        let mut spans = Vec::new();
        for (i, row) in step.sequence_ids.iter().enumerate() {
            assert!(seen.insert(*row), "row {row} appears twice");
            let sequence = self.sequences.get_mut(row).expect("an admitted row");
            sequence
                .blocks
                .extend(new_blocks.by_ref().take(step.num_new_blocks[i] as usize));
            let end = sequence.num_computed + step.num_tokens[i] as usize;
            sequence.failed |= fault == Fault::Step;
            if sequence.failed {
                result
                    .failures
                    .push(failure(*row, sequence_failure::Kind::Internal));
            } else {
                assert!(
                    end <= sequence.tokens.len(),
                    "row {row}: tokens that are not known"
                );
            }
            let samples = end == sequence.tokens.len();
            let nan = fault == Fault::Nan(i) && samples && !sequence.failed;
            for position in sequence.num_computed..end {
                let content = (!sequence.failed && !nan)
                    .then(|| (sequence.seed, sequence.tokens[..=position].to_vec()));
                self.slots.insert(sequence.slot(position), content);
            }
            if !sequence.failed {
                spans.push((*row, end, nan));
            }
        }
        assert!(new_blocks.next().is_none(), "blocks for nobody");
        for (row, end, nan) in spans {
            let sequence = self.sequences.get_mut(&row).expect("it was there above");
            assert!(end > sequence.num_computed, "row {row} computes nothing");
            let mut good = true;
            for position in 0..end {
                match &self.slots[&sequence.slot(position)] {
                    None => good = false,
                    Some((seed, tokens)) => assert_eq!(
                        (*seed, tokens.as_slice()),
                        (sequence.seed, &sequence.tokens[..=position]),
                        "row {row} reads another one's cache"
                    ),
                }
            }
            if !good {
                for position in sequence.num_computed..end {
                    self.slots.insert(sequence.slot(position), None);
                }
            }
            sequence.num_computed = end;
            if nan {
                sequence.failed = true;
                result
                    .failures
                    .push(failure(row, sequence_failure::Kind::NanLogits));
            } else if end == sequence.tokens.len() {
                let token = if good {
                    next_token(&sequence.tokens)
                } else {
                    GARBAGE
                };
                sequence.tokens.push(token);
                result.sequence_ids.push(row);
                result.token_ids.push(token);
            }
        }
        result
    }
}

impl ShardSequence {
    fn slot(&self, position: usize) -> (u32, usize) {
        (self.blocks[position / BLOCK_SIZE], position % BLOCK_SIZE)
    }
}

fn failure(row: u32, kind: sequence_failure::Kind) -> SequenceFailure {
    SequenceFailure {
        sequence_id: row,
        kind: kind.into(),
        message: String::new(),
    }
}

/// Scheduler and shard, with the steps and results between them.
struct Bench {
    scheduler: Scheduler,
    shard: Shard,
    steps: VecDeque<Step>,
    results: VecDeque<StepResult>,
    config: SchedulerConfig,
    next_key: SequenceKey,
}

fn vocabulary() -> Arc<Vocabulary> {
    Arc::new(Vocabulary::new(Arc::new(Tokenizer::new(
        WordLevel::default(),
    ))))
}

fn request(prompt: Vec<u32>, max_new_tokens: usize, priority: Priority) -> GenerationRequest {
    GenerationRequest {
        token_ids: prompt,
        max_new_tokens: max_new_tokens as u32,
        sampling: SamplingParameters {
            greedy: true,
            ..Default::default()
        },
        stop: StopConditions::default(),
        logprobs: LogprobOptions::default(),
        priority,
        namespace: CacheNamespace::default(),
        skip_special_tokens: true,
        queue_timeout: None,
        span: tracing::Span::none(),
    }
}

type Events = UnboundedReceiver<Result<Event, GenerationError>>;

impl Bench {
    fn new(num_blocks: u32, max_batch_tokens: usize, max_sequences: u32) -> Self {
        let config = SchedulerConfig {
            block_size_tokens: BLOCK_SIZE,
            num_blocks,
            max_batch_tokens,
            max_sequences,
            prefix_cache: true,
            queue_timeout: Duration::from_secs(5),
        };
        Bench {
            scheduler: Scheduler::new(config, vocabulary(), vec![], EngineMetrics::new()),
            shard: Shard::default(),
            steps: VecDeque::new(),
            results: VecDeque::new(),
            config,
            next_key: 0,
        }
    }

    fn submit(&mut self, request: GenerationRequest) -> (SequenceKey, Events) {
        let (sender, events) = unbounded_channel();
        let key = self.next_key;
        self.next_key += 1;
        self.scheduler.add(Sequence::new(
            key,
            request,
            &vocabulary(),
            sender,
            Instant::now(),
        ));
        (key, events)
    }

    fn schedule(&mut self) -> bool {
        let step = self.scheduler.schedule(Instant::now());
        self.scheduler
            .check_integrity()
            .expect("integrity after scheduling");
        step.map(|step| self.steps.push_back(step)).is_some()
    }

    fn compute(&mut self) -> bool {
        self.compute_with(Fault::None)
    }

    fn compute_with(&mut self, fault: Fault) -> bool {
        let Some(step) = self.steps.pop_front() else {
            return false;
        };
        self.results.push_back(self.shard.run(&step, fault));
        true
    }

    fn apply(&mut self) -> bool {
        let Some(result) = self.results.pop_front() else {
            return false;
        };
        self.scheduler
            .apply(&result, Instant::now())
            .expect("a result as asked for");
        self.scheduler
            .check_integrity()
            .expect("integrity after a result");
        true
    }

    fn lose_shard(&mut self) {
        self.steps.clear();
        self.results.clear();
        self.shard = Shard::default();
        self.scheduler.shard_lost(true);
        self.scheduler.reset_shard(self.config);
        self.scheduler
            .check_integrity()
            .expect("integrity after a loss");
    }

    fn run_to_end(&mut self) {
        for _ in 0..20_000 {
            let (scheduled, computed, applied) = (self.schedule(), self.compute(), self.apply());
            if !scheduled && !computed && !applied {
                assert_eq!(self.scheduler.num_sequences(), 0, "the scheduler is stuck");
                assert_eq!(self.scheduler.pool.num_used(), 0);
                assert!(
                    self.shard.sequences.is_empty(),
                    "the shard was told of every end"
                );
                return;
            }
        }
        panic!("no end in sight");
    }
}

fn tokens(events: &mut Events) -> Vec<u32> {
    let mut ids = Vec::new();
    while let Ok(event) = events.try_recv() {
        match event.expect("no failure") {
            Event::Token(token) => ids.push(token.id),
            Event::PromptLogprobs(_) => panic!("not asked for"),
        }
    }
    ids
}

#[test]
fn two_steps_are_in_flight_and_the_second_decodes_a_token_not_yet_seen() {
    let mut bench = Bench::new(16, 64, 4);
    let (_, mut events) = bench.submit(request(vec![1, 2, 3], 5, Priority::Normal));
    assert!(bench.schedule() && bench.schedule());
    assert!(!bench.schedule(), "no third step before a result");
    assert_eq!(bench.steps[1].num_tokens, [1]);
    bench.run_to_end();
    assert_eq!(tokens(&mut events), continuation(&[1, 2, 3], 5));
}

#[test]
fn a_long_prompt_is_computed_in_chunks_beside_decodes() {
    let mut bench = Bench::new(64, 8, 4);
    let (_, mut short) = bench.submit(request(vec![1], 20, Priority::Normal));
    let long_prompt: Vec<u32> = (0..50).collect();
    let (_, mut long) = bench.submit(request(long_prompt.clone(), 3, Priority::Normal));
    bench.run_to_end();
    assert_eq!(tokens(&mut short), continuation(&[1], 20));
    assert_eq!(tokens(&mut long), continuation(&long_prompt, 3));
    assert!(
        bench.shard.most_tokens <= 8,
        "a step had {} tokens",
        bench.shard.most_tokens
    );
}

#[test]
fn higher_priority_runs_first() {
    let mut bench = Bench::new(64, 64, 1);
    let (low, _low_events) = bench.submit(request(vec![1], 2, Priority::Low));
    let (high, _high_events) = bench.submit(request(vec![2], 2, Priority::High));
    bench.schedule();
    assert!(bench.scheduler.sequences[&high].row.is_some());
    assert!(bench.scheduler.sequences[&low].row.is_none());
}

#[test]
fn when_blocks_run_out_the_newest_gives_way_and_nobody_notices() {
    let mut bench = Bench::new(8, 64, 4);
    let mut all: Vec<_> = (0..4)
        .map(|i| {
            let prompt = vec![i + 1; 3];
            let (_, events) = bench.submit(request(prompt.clone(), 20, Priority::Normal));
            (prompt, events)
        })
        .collect();
    bench.run_to_end();
    for (prompt, events) in &mut all {
        assert_eq!(tokens(events), continuation(prompt, 20));
    }
}

#[test]
fn an_aborted_sequence_frees_its_blocks_at_once_and_the_shard_hears_of_it() {
    let mut bench = Bench::new(8, 64, 4);
    let (key, _events) = bench.submit(request(vec![1, 2, 3], 20, Priority::Normal));
    bench.schedule();
    bench.schedule();
    bench.scheduler.abort(key);
    assert_eq!(bench.scheduler.pool.num_used(), 0);
    bench.run_to_end();
}

#[test]
fn a_sequence_that_keeps_killing_the_shard_fails_alone() {
    let mut bench = Bench::new(64, 64, 8);
    let killer_prompt = vec![666, 1];
    let (_, mut killer) = bench.submit(request(killer_prompt.clone(), 5, Priority::Normal));
    let mut others: Vec<_> = (0..4)
        .map(|i| {
            (
                vec![i],
                bench.submit(request(vec![i], 6, Priority::Normal)).1,
            )
        })
        .collect();
    let mut deaths = 0;
    for _ in 0..200 {
        bench.schedule();
        let kills = bench.steps.front().is_some_and(|step| {
            step.admitted.iter().any(|new| {
                new.token_ids.starts_with(&killer_prompt) && step.sequence_ids.contains(&new.id)
            })
        });
        if kills {
            deaths += 1;
            bench.lose_shard();
        } else {
            bench.compute();
            bench.apply();
        }
    }
    assert_eq!(deaths, 3);
    assert!(matches!(
        killer.try_recv(),
        Ok(Err(GenerationError::ShardKiller { deaths: 3 }))
    ));
    for (prompt, events) in &mut others {
        assert_eq!(tokens(events), continuation(prompt, 6));
    }
}

#[test]
fn waiting_too_long_fails_the_request() {
    let mut bench = Bench::new(64, 64, 1);
    let (_, _running) = bench.submit(request(vec![1], 5, Priority::Normal));
    let (_, mut waiting) = bench.submit(request(vec![2], 5, Priority::Normal));
    bench.schedule();
    bench
        .scheduler
        .expire(Instant::now() + Duration::from_secs(6));
    assert!(matches!(
        waiting.try_recv(),
        Ok(Err(GenerationError::QueueTimeout { limit_s: 5 }))
    ));
    bench.run_to_end();
}

#[test]
fn a_failed_sequence_leaves_its_neighbours_alone() {
    let mut bench = Bench::new(64, 64, 4);
    let (_, mut bad) = bench.submit(request(vec![1], 5, Priority::Normal));
    let (_, mut good) = bench.submit(request(vec![2], 5, Priority::Normal));
    bench.schedule();
    bench.compute();
    let result = &mut bench.results[0];
    let row = result.sequence_ids.remove(0);
    result.token_ids.remove(0);
    result.failures.push(SequenceFailure {
        sequence_id: row,
        kind: sequence_failure::Kind::NanLogits.into(),
        message: String::new(),
    });
    bench.run_to_end();
    assert!(matches!(
        bad.try_recv(),
        Ok(Err(GenerationError::NanLogits))
    ));
    assert_eq!(tokens(&mut good), continuation(&[2], 5));
}

#[test]
fn an_end_of_sequence_token_ends_it_also_as_the_last_one_allowed() {
    let expected = continuation(&[5, 6], 3);
    for max_new_tokens in [3, 10] {
        let mut bench = Bench::new(64, 64, 4);
        bench.scheduler.eos_token_ids = vec![expected[2]];
        let (_, mut events) = bench.submit(request(vec![5, 6], max_new_tokens, Priority::Normal));
        bench.run_to_end();
        let mut last = None;
        while let Ok(Ok(Event::Token(token))) = events.try_recv() {
            last = Some(token);
        }
        let finish = last.and_then(|token| token.finish).expect("a finish");
        assert_eq!(
            (finish.reason, finish.num_generated_tokens),
            (FinishReason::EndOfSequence, 3)
        );
    }
}

#[path = "prefix_tests.rs"]
mod prefix;
