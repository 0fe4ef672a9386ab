//! The scheduler against a shard that follows the contract to the letter and remembers who wrote what where.

use std::collections::{HashMap, HashSet, VecDeque};

use gridwork_proto::v1::{NewSequence, SamplingParameters};
use proptest::prelude::*;
use tokenizers::Tokenizer;
use tokenizers::models::wordlevel::WordLevel;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::*;
use crate::request::{Event, FinishReason, GenerationRequest, LogprobOptions, StopConditions};

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

/// The shard's side of the contract, with a cache whose slots remember the text that they were computed from.
#[derive(Default)]
struct Shard {
    sequences: HashMap<u32, ShardSequence>,
    slots: HashMap<(u32, usize), Vec<u32>>,
    last_step: u64,
    most_tokens: usize,
}

struct ShardSequence {
    tokens: Vec<u32>,
    num_computed: usize,
    blocks: Vec<u32>,
}

impl Shard {
    fn run(&mut self, step: &Step) -> StepResult {
        assert_eq!(step.id, self.last_step + 1);
        self.last_step = step.id;
        for row in &step.released {
            assert!(
                self.sequences.remove(row).is_some(),
                "row {row} was free already"
            );
        }
        for NewSequence { id, token_ids, .. } in &step.admitted {
            let sequence = ShardSequence {
                tokens: token_ids.clone(),
                num_computed: 0,
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
        for (i, row) in step.sequence_ids.iter().enumerate() {
            assert!(seen.insert(*row), "row {row} appears twice");
            let sequence = self.sequences.get_mut(row).expect("an admitted row");
            sequence
                .blocks
                .extend(new_blocks.by_ref().take(step.num_new_blocks[i] as usize));
            let end = sequence.num_computed + step.num_tokens[i] as usize;
            assert!(
                end <= sequence.tokens.len(),
                "row {row} computes tokens that are not known"
            );
            for position in sequence.num_computed..end {
                let block = sequence.blocks[position / BLOCK_SIZE];
                self.slots.insert(
                    (block, position % BLOCK_SIZE),
                    sequence.tokens[..=position].to_vec(),
                );
            }
            for position in 0..end {
                let slot = (
                    sequence.blocks[position / BLOCK_SIZE],
                    position % BLOCK_SIZE,
                );
                assert_eq!(
                    self.slots[&slot],
                    sequence.tokens[..=position],
                    "row {row} reads another one's cache"
                );
            }
            sequence.num_computed = end;
            if end == sequence.tokens.len() {
                let token = next_token(&sequence.tokens);
                sequence.tokens.push(token);
                result.sequence_ids.push(*row);
                result.token_ids.push(token);
            }
        }
        assert!(new_blocks.next().is_none(), "blocks for nobody");
        result
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
        let Some(step) = self.steps.pop_front() else {
            return false;
        };
        self.results.push_back(self.shard.run(&step));
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
    bench.scheduler.expire(
        Duration::from_secs(5),
        Instant::now() + Duration::from_secs(6),
    );
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

#[derive(Debug, Clone)]
enum Action {
    Submit {
        prompt_tokens: usize,
        max_new_tokens: usize,
        priority: Priority,
    },
    Abort(usize),
    Schedule,
    Compute,
    Apply,
}

fn action() -> impl Strategy<Value = Action> {
    let priority = prop::sample::select(vec![Priority::High, Priority::Normal, Priority::Low]);
    prop_oneof![
        3 => (1usize..20, 1usize..12, priority).prop_map(|(prompt_tokens, max_new_tokens, priority)| Action::Submit {
            prompt_tokens,
            max_new_tokens,
            priority
        }),
        1 => (0usize..8).prop_map(Action::Abort),
        8 => Just(Action::Schedule),
        8 => Just(Action::Compute),
        8 => Just(Action::Apply),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever comes in whatever order, every sequence that is not aborted gets its own continuation, whole.
    #[test]
    fn no_token_is_lost_doubled_or_changed(
        actions in prop::collection::vec(action(), 1..200),
        lose_at in prop::option::of(0usize..200),
        num_blocks in 8u32..24,
        max_batch_tokens in 1usize..40,
        max_sequences in 1u32..6,
    ) {
        let mut bench = Bench::new(num_blocks, max_batch_tokens, max_sequences);
        let mut submitted: Vec<(SequenceKey, Vec<u32>, usize, Events)> = Vec::new();
        let mut aborted = HashSet::new();
        for (i, action) in actions.into_iter().enumerate() {
            if lose_at == Some(i) {
                bench.lose_shard();
            }
            match action {
                Action::Submit { prompt_tokens, max_new_tokens, priority } => {
                    let prompt: Vec<u32> = (0..prompt_tokens as u32).map(|t| t + i as u32).collect();
                    let (key, events) = bench.submit(request(prompt.clone(), max_new_tokens, priority));
                    submitted.push((key, prompt, max_new_tokens, events));
                }
                Action::Abort(which) => {
                    if let Some((key, ..)) = submitted.get(which) {
                        bench.scheduler.abort(*key);
                        aborted.insert(*key);
                    }
                }
                Action::Schedule => { bench.schedule(); }
                Action::Compute => { bench.compute(); }
                Action::Apply => { bench.apply(); }
            }
        }
        bench.run_to_end();
        for (key, prompt, max_new_tokens, events) in &mut submitted {
            let expected = continuation(prompt, *max_new_tokens);
            let got = tokens(events);
            if aborted.contains(key) {
                prop_assert!(expected.starts_with(&got));
            } else {
                prop_assert_eq!(got, expected);
            }
        }
    }
}
