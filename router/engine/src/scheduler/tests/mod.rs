//! The scheduler against a shard that follows the contract to the letter and remembers who wrote what where.

use std::collections::{HashMap, HashSet, VecDeque};

use gridwork_proto::v1::{
    NewSequence, SamplingParameters, SequenceFailure, StepResult, sequence_failure,
};
use proptest::prelude::*;
use tokenizers::Tokenizer;
use tokenizers::models::wordlevel::WordLevel;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::*;
use crate::request::{
    CacheNamespace, Event, FinishReason, GenerationRequest, LogprobOptions, StopConditions,
};

mod simulated_shard;

use simulated_shard::{Fault, Shard};

const BLOCK_SIZE: usize = 4;

/// From this token on, texts repeat themselves.
const REPETITIVE: u32 = 5000;

/// A "model" whose next token depends on everything before it; when that begins repetitively, mostly on the last one.
fn next_token(tokens: &[u32]) -> u32 {
    let hash = tokens.iter().fold(7u32, |hash, token| {
        hash.wrapping_mul(31).wrapping_add(*token)
    });
    match tokens {
        [first, .., last] if *first >= REPETITIVE && hash % 16 > 0 => REPETITIVE + (last + 1) % 5,
        [first, ..] if *first >= REPETITIVE => REPETITIVE + hash / 16 % 5,
        _ => hash % 1000,
    }
}

/// What `prompt` leads to.
fn continuation(prompt: &[u32], count: usize) -> Vec<u32> {
    let mut tokens = prompt.to_vec();
    for _ in 0..count {
        tokens.push(next_token(&tokens));
    }
    tokens.split_off(prompt.len())
}

/// Scheduler and shard, with the steps and results between them.
struct Bench {
    scheduler: Scheduler,
    shard: Shard,
    steps: VecDeque<Step>,
    results: VecDeque<StepResult>,
    config: SchedulerConfig,
    most_drafts: usize,
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
            repetition_penalty: 1.0,
            ..Default::default()
        },
        stop: StopConditions::default(),
        logprobs: LogprobOptions::default(),
        priority,
        namespace: CacheNamespace::default(),
        skip_special_tokens: true,
        queue_timeout: None,
        place: Default::default(),
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
            draft_step_tokens: 0,
            queue_timeout: Duration::from_secs(5),
            lengths: LengthRule::default(),
        };
        Bench {
            scheduler: Scheduler::new(config, vocabulary(), vec![], EngineMetrics::new()),
            shard: Shard::default(),
            steps: VecDeque::new(),
            results: VecDeque::new(),
            config,
            most_drafts: 0,
            next_key: 0,
        }
    }

    /// With so many drafts of a sequence, and so many decodes and drafts in a step.
    fn speculating(mut self, most_drafts: usize, draft_step_tokens: usize) -> Self {
        self.most_drafts = most_drafts;
        self.config.draft_step_tokens = draft_step_tokens;
        self.scheduler.reset_shard(self.config);
        self
    }

    /// For a model whose keys depend on how many tokens are computed together.
    fn following(mut self, border: usize, apart: bool, recompute_at: usize) -> Self {
        self.config.lengths = LengthRule {
            border,
            apart,
            recompute_at,
        };
        self.shard.lengths = self.config.lengths;
        self.scheduler.reset_shard(self.config);
        self
    }

    fn submit(&mut self, request: GenerationRequest) -> (SequenceKey, Events) {
        let (sender, events) = unbounded_channel();
        let key = self.next_key;
        self.next_key += 1;
        let sequence = Sequence::new(key, request, &vocabulary(), sender, Instant::now());
        self.scheduler.add(sequence.speculating(self.most_drafts));
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
        self.shard.lengths = self.config.lengths;
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
fn while_a_long_step_is_computed_the_next_waits_for_what_comes_meanwhile() {
    let mut bench = Bench::new(64, 512, 4);
    let _first = bench.submit(request(vec![1; 8], 50, Priority::Normal));
    bench.schedule();
    assert!(bench.schedule(), "nobody knows yet how long steps take");
    for _ in 0..2 {
        bench.compute();
        bench.results[0].forward_us = 30_000;
        bench.apply();
    }
    assert!(bench.schedule());
    assert!(!bench.schedule());
    let _second = bench.submit(request(vec![2; 8], 50, Priority::Normal));
    bench.compute();
    bench.apply();
    assert!(bench.schedule());
    assert_eq!(
        bench.steps[0].num_tokens,
        [1, 8],
        "it goes into the next step"
    );
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

/// Runs to the end; every step that computes a sequence which begins with `culprit` raises an exception. Returns how many
/// sequences these steps had.
fn run_with_culprit(bench: &mut Bench, culprit: &[u32]) -> Vec<usize> {
    let mut raised = Vec::new();
    for _ in 0..2000 {
        bench.schedule();
        let fault = bench.steps.front().map_or(Fault::None, |step| {
            let admitted = step
                .admitted
                .iter()
                .map(|new| (new.id, new.token_ids.as_slice()));
            let culprits: Vec<u32> = admitted
                .chain(
                    bench
                        .shard
                        .known()
                        .filter(|(row, _)| !step.released.contains(row)),
                )
                .filter_map(|(row, tokens)| tokens.starts_with(culprit).then_some(row))
                .collect();
            if step.sequence_ids.iter().any(|row| culprits.contains(row)) {
                raised.push(step.sequence_ids.len());
                Fault::Step
            } else {
                Fault::None
            }
        });
        bench.compute_with(fault);
        bench.apply();
    }
    bench.run_to_end();
    raised
}

#[test]
fn a_sequence_whose_steps_raise_fails_alone_and_the_others_go_on() {
    for (num_blocks, most_drafts) in [(64, 0), (64, 4), (12, 0), (12, 4)] {
        let mut bench = Bench::new(num_blocks, 64, 8).speculating(most_drafts, 16);
        let mut others: Vec<_> = (0..4)
            .map(|i| {
                let prompt = vec![REPETITIVE + i, 1, 2];
                let (_, events) = bench.submit(request(prompt.clone(), 30, Priority::Normal));
                (prompt, events)
            })
            .collect();
        for _ in 0..5 {
            bench.schedule();
            bench.compute();
            bench.apply();
        }
        let culprit = vec![666; 9];
        let (_, mut bad) = bench.submit(request(culprit.clone(), 5, Priority::High));
        let raised = run_with_culprit(&mut bench, &culprit);
        assert!(raised.len() <= 3, "{raised:?}");
        assert_eq!(raised.last(), Some(&1), "{raised:?}");
        match bad.try_recv() {
            Ok(Err(GenerationError::Shard(message))) => assert!(message.contains("no memory")),
            other => panic!("{other:?}"),
        }
        for (prompt, events) in &mut others {
            assert_eq!(tokens(events), continuation(prompt, 30));
        }
    }
}

#[test]
fn a_step_that_raises_once_costs_nobody_a_token() {
    for raising in 0..12 {
        let mut bench = Bench::new(16, 8, 4);
        let mut all: Vec<_> = (0..4u32)
            .map(|i| {
                let prompt: Vec<u32> = (i..i + 7).collect();
                let (_, events) = bench.submit(request(prompt.clone(), 9, Priority::Normal));
                (prompt, events)
            })
            .collect();
        for i in 0..12 {
            bench.schedule();
            bench.schedule();
            let several = bench
                .steps
                .front()
                .is_some_and(|step| step.sequence_ids.len() > 1);
            bench.compute_with(if i == raising && several {
                Fault::Step
            } else {
                Fault::None
            });
            bench.apply();
        }
        bench.run_to_end();
        for (prompt, events) in &mut all {
            assert_eq!(tokens(events), continuation(prompt, 9), "{raising}");
        }
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

mod lengths;

mod prefix;

mod drafting;
