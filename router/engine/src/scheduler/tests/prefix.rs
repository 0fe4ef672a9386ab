//! Tests of shared prefixes, against the same shard as the scheduler's other tests.

use super::*;

fn long_prompt(count: u32) -> Vec<u32> {
    (100..100 + count).collect()
}

fn salted(prompt: Vec<u32>, max_new_tokens: usize, salt: u64) -> GenerationRequest {
    let mut request = request(prompt, max_new_tokens, Priority::Normal);
    request.namespace.salt = (salt > 0).then(|| salt.to_string());
    request.sampling.seed = salt;
    request
}

/// The generated tokens, and the number of the prompt's tokens that were cached.
fn finished(events: &mut Events) -> (Vec<u32>, u32) {
    let (mut ids, mut cached) = (Vec::new(), None);
    while let Ok(event) = events.try_recv() {
        if let Event::Token(token) = event.expect("no failure") {
            ids.push(token.id);
            cached = token.finish.map(|finish| finish.num_cached_tokens);
        }
    }
    (ids, cached.expect("it has finished"))
}

#[test]
fn equal_prompts_that_arrive_together_are_computed_once() {
    let mut harness = Harness::new(64, 512, 8);
    let prompt = long_prompt(4 * 10 + 2);
    let mut all: Vec<Events> = (0..5)
        .map(|_| {
            harness
                .submit(request(prompt.clone(), 1, Priority::Normal))
                .1
        })
        .collect();
    harness.run_to_end();
    // The first prompt is computed whole, of each other one the part that does not fill a block.
    assert_eq!(harness.shard.num_computed_tokens, 42 + 4 * 2);
    for (i, events) in all.iter_mut().enumerate() {
        let cached = if i == 0 { 0 } else { 40 };
        assert_eq!(finished(events), (continuation(&prompt, 1), cached));
    }
}

#[test]
fn a_conversation_computes_only_its_new_tokens() {
    let mut harness = Harness::new(64, 512, 8);
    let mut history = long_prompt(30);
    let (_, mut events) = harness.submit(request(history.clone(), 9, Priority::Normal));
    harness.run_to_end();
    let (answer, cached) = finished(&mut events);
    assert_eq!(
        (answer.as_slice(), cached),
        (continuation(&history, 9).as_slice(), 0)
    );
    history.extend(answer);
    history.extend([7, 7, 7]);
    let before = harness.shard.num_computed_tokens;
    let (_, mut events) = harness.submit(request(history.clone(), 1, Priority::Normal));
    harness.run_to_end();
    // 38 tokens were computed, which is nine blocks.
    assert_eq!(finished(&mut events), (continuation(&history, 1), 36));
    assert_eq!(
        harness.shard.num_computed_tokens - before,
        history.len() - 36
    );
}

#[test]
fn at_least_one_token_is_computed() {
    let mut harness = Harness::new(64, 512, 8);
    let prompt = long_prompt(4 * 5);
    for cached in [0, 16, 16] {
        let (_, mut events) = harness.submit(request(prompt.clone(), 2, Priority::Normal));
        harness.run_to_end();
        assert_eq!(finished(&mut events), (continuation(&prompt, 2), cached));
    }
}

#[test]
fn nothing_is_shared_without_a_prefix_cache_or_between_salts() {
    let prompt = long_prompt(40);
    for (prefix_cache, salts, cached) in [(false, [0, 0], 0), (true, [1, 2], 0), (true, [1, 1], 36)]
    {
        let mut harness = Harness::new(64, 512, 8);
        harness.config.prefix_cache = prefix_cache;
        harness.scheduler.reset_shard(harness.config);
        for (salt, expected) in salts.into_iter().zip([0, cached]) {
            let (_, mut events) = harness.submit(salted(prompt.clone(), 3, salt));
            harness.run_to_end();
            assert_eq!(finished(&mut events), (continuation(&prompt, 3), expected));
        }
        assert_eq!(harness.scheduler.pool.num_cached() == 0, !prefix_cache);
    }
}

#[test]
fn prompts_with_logprobs_are_computed_whole_and_shared() {
    let mut harness = Harness::new(64, 512, 8);
    let prompt = long_prompt(40);
    for _ in 0..2 {
        let before = harness.shard.num_computed_tokens;
        let mut request = request(prompt.clone(), 1, Priority::Normal);
        request.logprobs.prompt = true;
        let (_, _events) = harness.submit(request);
        harness.run_to_end();
        assert_eq!(harness.shard.num_computed_tokens - before, 40);
    }
    let (_, mut events) = harness.submit(request(prompt.clone(), 1, Priority::Normal));
    harness.run_to_end();
    assert_eq!(finished(&mut events).1, 36);
}

#[test]
fn a_preempted_sequence_finds_its_blocks_again() {
    let mut harness = Harness::new(64, 512, 8);
    let prompt = long_prompt(40);
    let (key, mut events) = harness.submit(request(prompt.clone(), 8, Priority::Normal));
    for _ in 0..3 {
        harness.schedule();
        harness.compute();
        harness.apply();
    }
    let before = harness.shard.num_computed_tokens;
    harness.scheduler.preempt(key);
    harness.run_to_end();
    assert_eq!(finished(&mut events), (continuation(&prompt, 8), 0));
    assert!(harness.shard.num_computed_tokens - before < 12);
}

#[test]
fn a_lost_shard_empties_the_prefix_cache() {
    let mut harness = Harness::new(64, 512, 8);
    let prompt = long_prompt(40);
    for _ in 0..2 {
        let (_, mut events) = harness.submit(request(prompt.clone(), 2, Priority::Normal));
        harness.run_to_end();
        assert_eq!(finished(&mut events), (continuation(&prompt, 2), 0));
        harness.lose_shard();
        assert_eq!(harness.scheduler.pool.num_cached(), 0);
    }
}

#[test]
fn users_of_blocks_of_a_failed_step_are_recomputed() {
    let mut harness = Harness::new(64, 512, 8);
    let prompt = long_prompt(42);
    let (_, mut bad) = harness.submit(request(prompt.clone(), 4, Priority::Normal));
    harness.schedule();
    // Admitted with all blocks of the first sequence, while the first one's step is in flight.
    let (_, mut good) = harness.submit(request(prompt.clone(), 4, Priority::Normal));
    harness.schedule();
    assert_eq!(harness.steps[1].admitted[0].num_computed_tokens, 40);
    harness.compute_with(Fault::Step);
    harness.run_to_end();
    assert!(matches!(bad.try_recv(), Ok(Err(GenerationError::Shard(_)))));
    assert_eq!(finished(&mut good).0, continuation(&prompt, 4));
}

#[test]
fn blocks_of_a_step_that_raised_are_not_used_again() {
    let mut harness = Harness::new(64, 512, 8);
    let prompts = [long_prompt(42), long_prompt(30)];
    let mut all = prompts
        .clone()
        .map(|prompt| harness.submit(request(prompt, 4, Priority::Normal)).1);
    harness.schedule();
    assert_eq!(harness.steps[0].admitted.len(), 2);
    let (_, mut late) = harness.submit(request(prompts[0].clone(), 4, Priority::Normal));
    harness.schedule();
    harness.compute_with(Fault::Step);
    harness.apply();
    assert_eq!(harness.scheduler.pool.num_cached(), 0);
    harness.run_to_end();
    for (events, prompt) in all
        .iter_mut()
        .zip(&prompts)
        .chain([(&mut late, &prompts[0])])
    {
        assert_eq!(finished(events).0, continuation(prompt, 4));
    }
}

#[test]
fn blocks_of_an_aborted_sequence_are_dropped_when_its_step_fails() {
    let mut harness = Harness::new(64, 512, 8);
    let prompt = long_prompt(42);
    let (key, _events) = harness.submit(request(prompt.clone(), 4, Priority::Normal));
    harness.schedule();
    harness.scheduler.abort(key);
    harness.compute_with(Fault::Step);
    harness.apply();
    assert_eq!(harness.scheduler.pool.num_cached(), 0);
    let (_, mut events) = harness.submit(request(prompt.clone(), 4, Priority::Normal));
    harness.run_to_end();
    assert_eq!(finished(&mut events), (continuation(&prompt, 4), 0));
}

#[test]
fn a_cached_prompt_overtakes_a_limited_number_of_times() {
    let mut harness = Harness::new(256, 512, 1);
    let shared = long_prompt(40);
    let (_, _warm) = harness.submit(request(shared.clone(), 1, Priority::Normal));
    harness.run_to_end();
    let (other, _other_events) = harness.submit(request(vec![1; 20], 1, Priority::Normal));
    let mut events = Vec::new();
    for i in 0..20 {
        let prompt = [shared.clone(), vec![i; 5]].concat();
        events.push(harness.submit(request(prompt, 1, Priority::Normal)));
    }
    let ahead = admitted(&mut harness);
    let position = ahead.iter().position(|prompt| prompt[0] == 1);
    assert_eq!(
        position,
        Some(crate::scheduler::queue::MAX_OVERTAKEN as usize),
        "{other} {ahead:?}"
    );
}

/// Runs to the end. Returns the prompts in the order in which they were admitted.
fn admitted(harness: &mut Harness) -> Vec<Vec<u32>> {
    let mut prompts = Vec::new();
    while harness.scheduler.num_sequences() > 0 {
        harness.schedule();
        for step in &harness.steps {
            prompts.extend(step.admitted.iter().map(|new| new.token_ids.clone()));
        }
        harness.compute();
        harness.apply();
    }
    prompts
}

#[test]
fn the_shorter_of_two_prompts_goes_first() {
    let mut harness = Harness::new(256, 512, 1);
    let lengths = [60, 20, 40, 20, 30];
    let _events: Vec<_> = (1..)
        .zip(lengths)
        .map(|(i, length)| harness.submit(request(vec![i; length], 1, Priority::Normal)))
        .collect();
    let order: Vec<u32> = admitted(&mut harness)
        .iter()
        .map(|prompt| prompt[0])
        .collect();
    assert_eq!(order, [2, 4, 5, 3, 1]);
}

#[test]
fn a_long_prompt_is_overtaken_a_limited_number_of_times() {
    let mut harness = Harness::new(256, 512, 1);
    let lengths = [60].into_iter().chain([20; 20]);
    let _events: Vec<_> = (1..)
        .zip(lengths)
        .map(|(i, length)| harness.submit(request(vec![i; length], 1, Priority::Normal)))
        .collect();
    let ahead = admitted(&mut harness);
    let position = ahead.iter().position(|prompt| prompt[0] == 1);
    assert_eq!(
        position,
        Some(crate::scheduler::queue::MAX_OVERTAKEN as usize)
    );
}

#[derive(Debug, Clone)]
enum Action {
    Submit {
        family: u32,
        prompt_tokens: usize,
        own_tokens: usize,
        max_new_tokens: usize,
        priority: Priority,
        salt: u64,
        prompt_logprobs: bool,
    },
    Abort(usize),
    Preempt(usize),
    Schedule,
    Compute,
    Fail(Fault),
    Apply,
    LoseShard,
}

fn action() -> impl Strategy<Value = Action> {
    let priority = prop::sample::select(vec![Priority::High, Priority::Normal, Priority::Low]);
    let fault = prop_oneof![Just(Fault::Step), (0usize..4).prop_map(Fault::Nan)];
    let submit = (
        prop::sample::select(vec![0, 1, REPETITIVE / 500]),
        0usize..20,
        0usize..3,
        1usize..20,
        priority,
        0u64..2,
        prop::bool::weighted(0.1),
    );
    prop_oneof![
        30 => submit.prop_map(
            |(family, prompt_tokens, own_tokens, max_new_tokens, priority, salt, prompt_logprobs)| Action::Submit {
                family,
                prompt_tokens,
                own_tokens,
                max_new_tokens,
                priority,
                salt,
                prompt_logprobs,
            }
        ),
        10 => (0usize..12).prop_map(Action::Abort),
        6 => (0usize..12).prop_map(Action::Preempt),
        80 => Just(Action::Schedule),
        70 => Just(Action::Compute),
        6 => fault.prop_map(Action::Fail),
        80 => Just(Action::Apply),
        1 => Just(Action::LoseShard),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// For any order of events and failures, every sequence that is not aborted gets its own continuation, complete,
    /// or an error. The blocks it reads were always computed from its own tokens.
    #[test]
    fn no_token_is_lost_doubled_or_changed(
        actions in prop::collection::vec(action(), 1..250),
        num_blocks in 12u32..40,
        max_batch_prefill_tokens in 1usize..40,
        max_sequences in 1u32..6,
        prefix_cache in prop::bool::weighted(0.9),
        max_drafts in 0usize..6,
        draft_step_tokens in 0usize..16,
        border in prop_oneof![2 => Just(0usize), 1 => 2usize..30],
        apart: bool,
        recomputes: bool,
    ) {
        let recompute_at = if recomputes && border > 0 { border + 1 } else { 0 };
        let mut harness =
            Harness::new(num_blocks, max_batch_prefill_tokens, max_sequences).following(border, apart, recompute_at);
        harness.config.prefix_cache = prefix_cache;
        harness.max_drafts = max_drafts;
        harness.config.draft_step_tokens = draft_step_tokens;
        harness.scheduler.reset_shard(harness.config);
        let mut submitted: Vec<(SequenceKey, Vec<u32>, usize, Events)> = Vec::new();
        let mut aborted = HashSet::new();
        for (i, action) in actions.into_iter().enumerate() {
            match action {
                Action::Submit { family, prompt_tokens, own_tokens, max_new_tokens, priority, salt, prompt_logprobs } => {
                    let repeats = if 500 * family < REPETITIVE { 100 } else { 5 };
                    let mut prompt: Vec<u32> = (0..prompt_tokens as u32).map(|t| t % repeats + 500 * family).collect();
                    prompt.extend(vec![i as u32; own_tokens]);
                    prompt.push(3);
                    let mut request = salted(prompt.clone(), max_new_tokens, salt);
                    request.priority = priority;
                    request.logprobs.prompt = prompt_logprobs;
                    let (key, events) = harness.submit(request);
                    submitted.push((key, prompt, max_new_tokens, events));
                }
                Action::Abort(which) => {
                    if let Some((key, ..)) = submitted.get(which) {
                        harness.scheduler.abort(*key);
                        aborted.insert(*key);
                    }
                }
                Action::Preempt(which) => {
                    let running: Vec<_> = harness.scheduler.running.iter().map(|(_, key)| *key).collect();
                    if let Some(key) = running.get(which) {
                        harness.scheduler.preempt(*key);
                    }
                }
                Action::Schedule => { harness.schedule(); }
                Action::Compute => { harness.compute(); }
                Action::Fail(fault) => { harness.compute_with(fault); }
                Action::Apply => { harness.apply(); }
                Action::LoseShard => harness.lose_shard(),
            }
            prop_assert_eq!(harness.scheduler.check_integrity(), Ok(()));
        }
        harness.run_to_end();
        for (key, prompt, max_new_tokens, events) in &mut submitted {
            let expected = continuation(prompt, *max_new_tokens);
            let (mut got, mut error) = (Vec::new(), None);
            while let Ok(event) = events.try_recv() {
                match event {
                    Ok(Event::Token(token)) => got.push(token.id),
                    Ok(Event::PromptLogprobs(_)) => {}
                    Err(failure) => error = Some(failure),
                }
            }
            if aborted.contains(key) || error.is_some() {
                prop_assert!(expected.starts_with(&got), "{:?} {:?}", error, got);
            } else {
                prop_assert_eq!(got, expected);
            }
        }
    }
}
