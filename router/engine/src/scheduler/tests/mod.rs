//! Tests of the scheduler against a simulated shard, which enforces the contract and remembers the writer of every
//! cache slot.

use std::collections::{HashMap, HashSet, VecDeque};

use gridwork_proto::v1::{
    NewSequence, SamplingParameters, SequenceFailure, StepResult, sequence_failure,
};
use proptest::prelude::*;
use tokenizers::Tokenizer;
use tokenizers::models::wordlevel::WordLevel;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::*;
use crate::request::{Event, FinishReason, GenerationRequest};

mod simulated_shard;

use simulated_shard::{Fault, Shard};

const BLOCK_SIZE: usize = 4;

/// Texts that begin with this token or a higher one repeat themselves.
const REPETITIVE: u32 = 5000;

/// A "model" whose next token depends on all tokens before it. In a repetitive text it depends mostly on the last
/// one.
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

/// The first `count` tokens that the model generates after `prompt`.
fn continuation(prompt: &[u32], count: usize) -> Vec<u32> {
    let mut tokens = prompt.to_vec();
    for _ in 0..count {
        tokens.push(next_token(&tokens));
    }
    tokens.split_off(prompt.len())
}

/// A scheduler and a simulated shard, with the steps and results between them.
struct Harness {
    scheduler: Scheduler,
    shard: Shard,
    steps: VecDeque<Step>,
    results: VecDeque<StepResult>,
    config: SchedulerConfig,
    max_drafts: usize,
    next_key: SequenceKey,
}

fn vocabulary() -> Arc<Vocabulary> {
    Arc::new(Vocabulary::new(Arc::new(Tokenizer::new(
        WordLevel::default(),
    ))))
}

fn request(prompt: Vec<u32>, max_new_tokens: usize, priority: Priority) -> GenerationRequest {
    GenerationRequest {
        priority,
        ..GenerationRequest::greedy(prompt, max_new_tokens as u32)
    }
}

type Events = UnboundedReceiver<Result<Event, GenerationError>>;

impl Harness {
    fn new(num_blocks: u32, max_batch_prefill_tokens: usize, max_sequences: u32) -> Self {
        let config = SchedulerConfig {
            block_size_tokens: BLOCK_SIZE,
            num_blocks,
            max_batch_prefill_tokens,
            max_sequences,
            prefix_cache: true,
            max_drafts: 0,
            draft_step_tokens: 0,
            drafts_only_forced: false,
            queue_timeout: Duration::from_secs(5),
            lengths: LengthRule::default(),
        };
        Harness {
            scheduler: Scheduler::new(config, vocabulary(), vec![], EngineMetrics::new()),
            shard: Shard::default(),
            steps: VecDeque::new(),
            results: VecDeque::new(),
            config,
            max_drafts: 0,
            next_key: 0,
        }
    }

    /// Enables speculation, with limits on a sequence's drafts and on the step's decodes and drafts.
    fn speculating(mut self, max_drafts: usize, draft_step_tokens: usize) -> Self {
        self.max_drafts = max_drafts;
        self.config.max_drafts = max_drafts;
        self.config.draft_step_tokens = draft_step_tokens;
        self.scheduler.reset_shard(self.config);
        self
    }

    /// Drafts tokens only where a grammar forces them, with the same limits.
    fn jumping_ahead(mut self, max_drafts: usize, draft_step_tokens: usize) -> Self {
        self.config.drafts_only_forced = true;
        self = self.speculating(max_drafts, draft_step_tokens);
        self.max_drafts = 0;
        self
    }

    /// Simulates a model whose keys depend on the number of tokens computed together.
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
        self.scheduler.add(sequence.speculating(self.max_drafts));
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
fn the_second_step_in_flight_decodes_an_unseen_token() {
    let mut harness = Harness::new(16, 64, 4);
    let (_, mut events) = harness.submit(request(vec![1, 2, 3], 5, Priority::Normal));
    assert!(harness.schedule() && harness.schedule());
    assert!(!harness.schedule(), "no third step before a result");
    assert_eq!(harness.steps[1].num_tokens, [1]);
    harness.run_to_end();
    assert_eq!(tokens(&mut events), continuation(&[1, 2, 3], 5));
}

#[test]
fn the_next_step_waits_for_requests_during_a_long_one() {
    let mut harness = Harness::new(64, 512, 4);
    let _first = harness.submit(request(vec![1; 8], 50, Priority::Normal));
    harness.schedule();
    assert!(harness.schedule(), "nobody knows yet how long steps take");
    for _ in 0..2 {
        harness.compute();
        harness.results[0].forward_us = 30_000;
        harness.apply();
    }
    assert!(harness.schedule());
    assert!(!harness.schedule());
    let _second = harness.submit(request(vec![2; 8], 50, Priority::Normal));
    harness.compute();
    harness.apply();
    assert!(harness.schedule());
    assert_eq!(
        harness.steps[0].num_tokens,
        [1, 8],
        "it goes into the next step"
    );
}

#[test]
fn a_long_prompt_is_computed_in_chunks_beside_decodes() {
    let mut harness = Harness::new(64, 8, 4);
    let (_, mut short) = harness.submit(request(vec![1], 20, Priority::Normal));
    let long_prompt: Vec<u32> = (0..50).collect();
    let (_, mut long) = harness.submit(request(long_prompt.clone(), 3, Priority::Normal));
    harness.run_to_end();
    assert_eq!(tokens(&mut short), continuation(&[1], 20));
    assert_eq!(tokens(&mut long), continuation(&long_prompt, 3));
    assert!(
        harness.shard.most_tokens <= 8,
        "a step had {} tokens",
        harness.shard.most_tokens
    );
}

#[test]
fn higher_priority_runs_first() {
    let mut harness = Harness::new(64, 64, 1);
    let (low, _low_events) = harness.submit(request(vec![1], 2, Priority::Low));
    let (high, _high_events) = harness.submit(request(vec![2], 2, Priority::High));
    harness.schedule();
    assert!(harness.scheduler.sequences[&high].sequence_id.is_some());
    assert!(harness.scheduler.sequences[&low].sequence_id.is_none());
}

#[test]
fn without_free_blocks_the_newest_is_preempted_invisibly() {
    let mut harness = Harness::new(8, 64, 4);
    let mut all: Vec<_> = (0..4)
        .map(|i| {
            let prompt = vec![i + 1; 3];
            let (_, events) = harness.submit(request(prompt.clone(), 20, Priority::Normal));
            (prompt, events)
        })
        .collect();
    harness.run_to_end();
    for (prompt, events) in &mut all {
        assert_eq!(tokens(events), continuation(prompt, 20));
    }
}

#[test]
fn an_aborted_sequence_is_released_at_once_and_at_the_shard() {
    let mut harness = Harness::new(8, 64, 4);
    let (key, _events) = harness.submit(request(vec![1, 2, 3], 20, Priority::Normal));
    harness.schedule();
    harness.schedule();
    harness.scheduler.abort(key);
    assert_eq!(harness.scheduler.pool.num_used(), 0);
    harness.run_to_end();
}

#[test]
fn a_sequence_that_keeps_crashing_the_shard_fails_alone() {
    let mut harness = Harness::new(64, 64, 8);
    let killer_prompt = vec![666, 1];
    let (_, mut killer) = harness.submit(request(killer_prompt.clone(), 5, Priority::Normal));
    let mut others: Vec<_> = (0..4)
        .map(|i| {
            (
                vec![i],
                harness.submit(request(vec![i], 6, Priority::Normal)).1,
            )
        })
        .collect();
    let mut deaths = 0;
    for _ in 0..200 {
        harness.schedule();
        let kills = harness.steps.front().is_some_and(|step| {
            step.admitted.iter().any(|new| {
                new.token_ids.starts_with(&killer_prompt) && step.sequence_ids.contains(&new.id)
            })
        });
        if kills {
            deaths += 1;
            harness.lose_shard();
        } else {
            harness.compute();
            harness.apply();
        }
    }
    assert_eq!(deaths, 3);
    assert!(matches!(
        killer.try_recv(),
        Ok(Err(GenerationError::ShardCrash { deaths: 3 }))
    ));
    for (prompt, events) in &mut others {
        assert_eq!(tokens(events), continuation(prompt, 6));
    }
}

/// Runs to the end. Every step that computes a sequence beginning with `culprit` raises an exception. Returns the
/// numbers of sequences in these steps.
fn run_with_culprit(harness: &mut Harness, culprit: &[u32]) -> Vec<usize> {
    let mut raised = Vec::new();
    for _ in 0..2000 {
        harness.schedule();
        let fault = harness.steps.front().map_or(Fault::None, |step| {
            let admitted = step
                .admitted
                .iter()
                .map(|new| (new.id, new.token_ids.as_slice()));
            let culprits: Vec<u32> = admitted
                .chain(
                    harness
                        .shard
                        .known()
                        .filter(|(sequence_id, _)| !step.released.contains(sequence_id)),
                )
                .filter_map(|(sequence_id, tokens)| {
                    tokens.starts_with(culprit).then_some(sequence_id)
                })
                .collect();
            if step
                .sequence_ids
                .iter()
                .any(|sequence_id| culprits.contains(sequence_id))
            {
                raised.push(step.sequence_ids.len());
                Fault::Step
            } else {
                Fault::None
            }
        });
        harness.compute_with(fault);
        harness.apply();
    }
    harness.run_to_end();
    raised
}

#[test]
fn a_sequence_whose_steps_raise_fails_alone() {
    for (num_blocks, max_drafts) in [(64, 0), (64, 4), (12, 0), (12, 4)] {
        let mut harness = Harness::new(num_blocks, 64, 8).speculating(max_drafts, 16);
        let mut others: Vec<_> = (0..4)
            .map(|i| {
                let prompt = vec![REPETITIVE + i, 1, 2];
                let (_, events) = harness.submit(request(prompt.clone(), 30, Priority::Normal));
                (prompt, events)
            })
            .collect();
        for _ in 0..5 {
            harness.schedule();
            harness.compute();
            harness.apply();
        }
        let culprit = vec![666; 9];
        let (_, mut bad) = harness.submit(request(culprit.clone(), 5, Priority::High));
        let raised = run_with_culprit(&mut harness, &culprit);
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
fn a_step_that_raises_once_loses_no_token() {
    for raising in 0..12 {
        let mut harness = Harness::new(16, 8, 4);
        let mut all: Vec<_> = (0..4u32)
            .map(|i| {
                let prompt: Vec<u32> = (i..i + 7).collect();
                let (_, events) = harness.submit(request(prompt.clone(), 9, Priority::Normal));
                (prompt, events)
            })
            .collect();
        for i in 0..12 {
            harness.schedule();
            harness.schedule();
            let several = harness
                .steps
                .front()
                .is_some_and(|step| step.sequence_ids.len() > 1);
            harness.compute_with(if i == raising && several {
                Fault::Step
            } else {
                Fault::None
            });
            harness.apply();
        }
        harness.run_to_end();
        for (prompt, events) in &mut all {
            assert_eq!(tokens(events), continuation(prompt, 9), "{raising}");
        }
    }
}

#[test]
fn a_request_that_waits_too_long_fails() {
    let mut harness = Harness::new(64, 64, 1);
    let (_, _running) = harness.submit(request(vec![1], 5, Priority::Normal));
    let (_, mut waiting) = harness.submit(request(vec![2], 5, Priority::Normal));
    harness.schedule();
    harness
        .scheduler
        .expire(Instant::now() + Duration::from_secs(6));
    assert!(matches!(
        waiting.try_recv(),
        Ok(Err(GenerationError::QueueTimeout { limit_s: 5 }))
    ));
    harness.run_to_end();
}

#[test]
fn a_failed_sequence_does_not_affect_its_neighbours() {
    let mut harness = Harness::new(64, 64, 4);
    let (_, mut bad) = harness.submit(request(vec![1], 5, Priority::Normal));
    let (_, mut good) = harness.submit(request(vec![2], 5, Priority::Normal));
    harness.schedule();
    harness.compute();
    let result = &mut harness.results[0];
    let sequence_id = result.sequence_ids.remove(0);
    result.token_ids.remove(0);
    result.failures.push(SequenceFailure {
        sequence_id,
        kind: sequence_failure::Kind::NanLogits.into(),
        message: String::new(),
    });
    harness.run_to_end();
    assert!(matches!(
        bad.try_recv(),
        Ok(Err(GenerationError::NanLogits))
    ));
    assert_eq!(tokens(&mut good), continuation(&[2], 5));
}

#[test]
fn an_end_token_as_the_last_allowed_token_is_the_finish_reason() {
    let expected = continuation(&[5, 6], 3);
    for max_new_tokens in [3, 10] {
        let mut harness = Harness::new(64, 64, 4);
        harness.scheduler.eos_token_ids = vec![expected[2]];
        let (_, mut events) = harness.submit(request(vec![5, 6], max_new_tokens, Priority::Normal));
        harness.run_to_end();
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

#[test]
fn end_tokens_and_stop_tokens_end_no_sequence_that_is_too_short() {
    for (max_drafts, prompt) in [(0, vec![5, 6]), (4, vec![REPETITIVE; 6])] {
        let expected = continuation(&prompt, 60);
        let first = |token| expected.iter().position(|t| *t == token);
        let end = first(expected[20]).expect("it is there") as u32;
        for (min_new_tokens, by_client) in [
            (end, false),
            (end, true),
            (end + 1, false),
            (end + 1, true),
            (60, true),
        ] {
            let mut harness = Harness::new(64, 64, 4).speculating(max_drafts, 32);
            let mut request = request(prompt.clone(), 60, Priority::Normal);
            request.stop.min_new_tokens = min_new_tokens;
            let token = expected[end as usize];
            if by_client {
                request.stop.ignore_eos = true;
                request.stop.token_ids = vec![token];
                harness.scheduler.eos_token_ids = vec![expected[0]];
            } else {
                harness.scheduler.eos_token_ids = vec![token];
            }
            let (_, mut events) = harness.submit(request);
            harness.schedule();
            // The simulated shard samples end tokens even so.
            let sampling = harness.steps[0].admitted[0].sampling.clone();
            let sampling = sampling.expect("parameters of sampling");
            assert_eq!(
                sampling.first_end_position,
                prompt.len() as u32 + min_new_tokens
            );
            let client = if by_client {
                vec![expected[0], token]
            } else {
                vec![token]
            };
            assert_eq!(sampling.end_token_ids, client);
            harness.run_to_end();
            let ends = expected.iter().skip(min_new_tokens as usize);
            let length = ends.take_while(|t| **t != token).count() + min_new_tokens as usize + 1;
            assert_eq!(tokens(&mut events), expected[..length.min(60)]);
        }
    }
}

#[test]
fn the_last_token_that_is_allowed_is_one_that_the_model_forces() {
    let mut harness = Harness::new(64, 64, 4);
    let mut request = request(vec![5, 6], 12, Priority::Normal);
    request.stop.forced_end_token_ids = vec![3, 4];
    harness.submit(request);
    harness.schedule();
    let sampling = harness.steps[0].admitted[0].sampling.clone();
    let sampling = sampling.expect("parameters of sampling");
    assert_eq!(sampling.forced_positions, [13, 13]);
    assert_eq!(sampling.forced_token_ids, [3, 4]);
}

#[test]
fn stop_strings_end_no_sequence_that_is_too_short() {
    let words = (0..1000).map(|id| (format!("w{id}."), id));
    let words = WordLevel::builder().vocab(words.collect()).build();
    let words = Tokenizer::new(words.expect("a vocabulary"));
    let words = Arc::new(Vocabulary::new(Arc::new(words)));
    let expected = continuation(&[5, 6], 12);
    assert!(!expected[..3].contains(&expected[3]) && !expected[4..].contains(&expected[3]));
    // The stop string ends in the fourth token. Without a match the text goes on to its maximum.
    for (min_new_tokens, length) in [(0, 4), (3, 4), (4, 4), (5, 12), (12, 12)] {
        let mut harness = Harness::new(64, 64, 4);
        harness.scheduler.vocabulary = words.clone();
        let mut request = request(vec![5, 6], 12, Priority::Normal);
        request.stop.strings = vec![format!("w{}.", expected[3])];
        request.stop.min_new_tokens = min_new_tokens;
        let (sender, mut events) = unbounded_channel();
        let sequence = Sequence::new(0, request, &words, sender, Instant::now());
        harness.scheduler.add(sequence);
        harness.run_to_end();
        assert_eq!(tokens(&mut events), expected[..length], "{min_new_tokens}");
    }
}

mod lengths;

mod prefix;

mod drafting;

mod grammars;
