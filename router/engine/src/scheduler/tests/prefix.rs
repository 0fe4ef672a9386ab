//! What sequences share, against the same shard as the scheduler's other tests.

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

/// The tokens, and how many of the prompt's were in the cache.
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
    let mut bench = Bench::new(64, 512, 8);
    let prompt = long_prompt(4 * 10 + 2);
    let mut all: Vec<Events> = (0..5)
        .map(|_| bench.submit(request(prompt.clone(), 1, Priority::Normal)).1)
        .collect();
    bench.run_to_end();
    // The first whole, of each other one what does not fill a block.
    assert_eq!(bench.shard.num_computed_tokens, 42 + 4 * 2);
    for (i, events) in all.iter_mut().enumerate() {
        let cached = if i == 0 { 0 } else { 40 };
        assert_eq!(finished(events), (continuation(&prompt, 1), cached));
    }
}

#[test]
fn a_conversation_computes_only_what_is_new() {
    let mut bench = Bench::new(64, 512, 8);
    let mut history = long_prompt(30);
    let (_, mut events) = bench.submit(request(history.clone(), 9, Priority::Normal));
    bench.run_to_end();
    let (answer, cached) = finished(&mut events);
    assert_eq!(
        (answer.as_slice(), cached),
        (continuation(&history, 9).as_slice(), 0)
    );
    history.extend(answer);
    history.extend([7, 7, 7]);
    let before = bench.shard.num_computed_tokens;
    let (_, mut events) = bench.submit(request(history.clone(), 1, Priority::Normal));
    bench.run_to_end();
    // 38 tokens were computed: nine blocks.
    assert_eq!(finished(&mut events), (continuation(&history, 1), 36));
    assert_eq!(bench.shard.num_computed_tokens - before, history.len() - 36);
}

#[test]
fn at_least_one_token_is_computed() {
    let mut bench = Bench::new(64, 512, 8);
    let prompt = long_prompt(4 * 5);
    for cached in [0, 16, 16] {
        let (_, mut events) = bench.submit(request(prompt.clone(), 2, Priority::Normal));
        bench.run_to_end();
        assert_eq!(finished(&mut events), (continuation(&prompt, 2), cached));
    }
}

#[test]
fn without_a_prefix_cache_and_between_salts_nothing_is_shared() {
    let prompt = long_prompt(40);
    for (prefix_cache, salts, cached) in [(false, [0, 0], 0), (true, [1, 2], 0), (true, [1, 1], 36)]
    {
        let mut bench = Bench::new(64, 512, 8);
        bench.config.prefix_cache = prefix_cache;
        bench.scheduler.reset_shard(bench.config);
        for (salt, expected) in salts.into_iter().zip([0, cached]) {
            let (_, mut events) = bench.submit(salted(prompt.clone(), 3, salt));
            bench.run_to_end();
            assert_eq!(finished(&mut events), (continuation(&prompt, 3), expected));
        }
        assert_eq!(bench.scheduler.pool.num_cached() == 0, !prefix_cache);
    }
}

#[test]
fn prompts_whose_log_probabilities_are_wanted_are_computed_whole_and_found_by_others() {
    let mut bench = Bench::new(64, 512, 8);
    let prompt = long_prompt(40);
    for _ in 0..2 {
        let before = bench.shard.num_computed_tokens;
        let mut request = request(prompt.clone(), 1, Priority::Normal);
        request.logprobs.prompt = true;
        let (_, _events) = bench.submit(request);
        bench.run_to_end();
        assert_eq!(bench.shard.num_computed_tokens - before, 40);
    }
    let (_, mut events) = bench.submit(request(prompt.clone(), 1, Priority::Normal));
    bench.run_to_end();
    assert_eq!(finished(&mut events).1, 36);
}

#[test]
fn a_preempted_sequence_finds_its_blocks_again() {
    let mut bench = Bench::new(64, 512, 8);
    let prompt = long_prompt(40);
    let (key, mut events) = bench.submit(request(prompt.clone(), 8, Priority::Normal));
    for _ in 0..3 {
        bench.schedule();
        bench.compute();
        bench.apply();
    }
    let before = bench.shard.num_computed_tokens;
    bench.scheduler.preempt(key);
    bench.run_to_end();
    assert_eq!(finished(&mut events), (continuation(&prompt, 8), 0));
    assert!(bench.shard.num_computed_tokens - before < 12);
}

#[test]
fn a_lost_shard_takes_its_cache_along() {
    let mut bench = Bench::new(64, 512, 8);
    let prompt = long_prompt(40);
    for _ in 0..2 {
        let (_, mut events) = bench.submit(request(prompt.clone(), 2, Priority::Normal));
        bench.run_to_end();
        assert_eq!(finished(&mut events), (continuation(&prompt, 2), 0));
        bench.lose_shard();
        assert_eq!(bench.scheduler.pool.num_cached(), 0);
    }
}

#[test]
fn who_was_admitted_on_blocks_of_a_failed_step_is_computed_again() {
    let mut bench = Bench::new(64, 512, 8);
    let prompt = long_prompt(42);
    let (_, mut bad) = bench.submit(request(prompt.clone(), 4, Priority::Normal));
    bench.schedule();
    // Admitted while the first one's step is on its way, with all of its blocks.
    let (_, mut good) = bench.submit(request(prompt.clone(), 4, Priority::Normal));
    bench.schedule();
    assert_eq!(bench.steps[1].admitted[0].num_computed_tokens, 40);
    bench.compute_with(Fault::Step);
    bench.run_to_end();
    assert!(matches!(bad.try_recv(), Ok(Err(GenerationError::Shard(_)))));
    assert_eq!(finished(&mut good).0, continuation(&prompt, 4));
}

#[test]
fn blocks_of_a_step_that_raised_are_not_used_again() {
    let mut bench = Bench::new(64, 512, 8);
    let prompts = [long_prompt(42), long_prompt(30)];
    let mut all = prompts
        .clone()
        .map(|prompt| bench.submit(request(prompt, 4, Priority::Normal)).1);
    bench.schedule();
    assert_eq!(bench.steps[0].admitted.len(), 2);
    let (_, mut late) = bench.submit(request(prompts[0].clone(), 4, Priority::Normal));
    bench.schedule();
    bench.compute_with(Fault::Step);
    bench.apply();
    assert_eq!(bench.scheduler.pool.num_cached(), 0);
    bench.run_to_end();
    for (events, prompt) in all
        .iter_mut()
        .zip(&prompts)
        .chain([(&mut late, &prompts[0])])
    {
        assert_eq!(finished(events).0, continuation(prompt, 4));
    }
}

#[test]
fn what_a_client_that_left_had_computed_is_forgotten_when_its_step_fails() {
    let mut bench = Bench::new(64, 512, 8);
    let prompt = long_prompt(42);
    let (key, _events) = bench.submit(request(prompt.clone(), 4, Priority::Normal));
    bench.schedule();
    bench.scheduler.abort(key);
    bench.compute_with(Fault::Step);
    bench.apply();
    assert_eq!(bench.scheduler.pool.num_cached(), 0);
    let (_, mut events) = bench.submit(request(prompt.clone(), 4, Priority::Normal));
    bench.run_to_end();
    assert_eq!(finished(&mut events), (continuation(&prompt, 4), 0));
}

#[test]
fn a_cached_prompt_goes_first_but_overtakes_a_few_times_only() {
    let mut bench = Bench::new(256, 512, 1);
    let shared = long_prompt(40);
    let (_, _warm) = bench.submit(request(shared.clone(), 1, Priority::Normal));
    bench.run_to_end();
    let (other, _other_events) = bench.submit(request(vec![1; 20], 1, Priority::Normal));
    let mut events = Vec::new();
    for i in 0..20 {
        let prompt = [shared.clone(), vec![i; 5]].concat();
        events.push(bench.submit(request(prompt, 1, Priority::Normal)));
    }
    let ahead = admitted(&mut bench);
    let position = ahead.iter().position(|prompt| prompt[0] == 1);
    assert_eq!(
        position,
        Some(crate::scheduler::queue::MAX_OVERTAKEN as usize),
        "{other} {ahead:?}"
    );
}

/// Runs to the end; the prompts in the order in which they were admitted.
fn admitted(bench: &mut Bench) -> Vec<Vec<u32>> {
    let mut prompts = Vec::new();
    while bench.scheduler.num_sequences() > 0 {
        bench.schedule();
        for step in &bench.steps {
            prompts.extend(step.admitted.iter().map(|new| new.token_ids.clone()));
        }
        bench.compute();
        bench.apply();
    }
    prompts
}

#[test]
fn the_shorter_of_two_prompts_goes_first() {
    let mut bench = Bench::new(256, 512, 1);
    let lengths = [60, 20, 40, 20, 30];
    let _events: Vec<_> = (1..)
        .zip(lengths)
        .map(|(i, length)| bench.submit(request(vec![i; length], 1, Priority::Normal)))
        .collect();
    let order: Vec<u32> = admitted(&mut bench)
        .iter()
        .map(|prompt| prompt[0])
        .collect();
    assert_eq!(order, [2, 4, 5, 3, 1]);
}

#[test]
fn a_long_prompt_is_overtaken_by_a_few_short_ones_only() {
    let mut bench = Bench::new(256, 512, 1);
    let lengths = [60].into_iter().chain([20; 20]);
    let _events: Vec<_> = (1..)
        .zip(lengths)
        .map(|(i, length)| bench.submit(request(vec![i; length], 1, Priority::Normal)))
        .collect();
    let ahead = admitted(&mut bench);
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

    /// Whatever comes in whatever order, and whatever fails: every sequence that is not aborted gets its own
    /// continuation, whole, or an error; what it reads was always computed from its own tokens.
    #[test]
    fn no_token_is_lost_doubled_or_changed(
        actions in prop::collection::vec(action(), 1..250),
        num_blocks in 12u32..40,
        max_batch_tokens in 1usize..40,
        max_sequences in 1u32..6,
        prefix_cache in prop::bool::weighted(0.9),
        most_drafts in 0usize..6,
        draft_step_tokens in 0usize..16,
        border in prop_oneof![2 => Just(0usize), 1 => 2usize..30],
        apart: bool,
        recomputes: bool,
    ) {
        let recompute_at = if recomputes && border > 0 { border + 1 } else { 0 };
        let mut bench =
            Bench::new(num_blocks, max_batch_tokens, max_sequences).following(border, apart, recompute_at);
        bench.config.prefix_cache = prefix_cache;
        bench.most_drafts = most_drafts;
        bench.config.draft_step_tokens = draft_step_tokens;
        bench.scheduler.reset_shard(bench.config);
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
                    let (key, events) = bench.submit(request);
                    submitted.push((key, prompt, max_new_tokens, events));
                }
                Action::Abort(which) => {
                    if let Some((key, ..)) = submitted.get(which) {
                        bench.scheduler.abort(*key);
                        aborted.insert(*key);
                    }
                }
                Action::Preempt(which) => {
                    let running: Vec<_> = bench.scheduler.running.iter().map(|(_, key)| *key).collect();
                    if let Some(key) = running.get(which) {
                        bench.scheduler.preempt(*key);
                    }
                }
                Action::Schedule => { bench.schedule(); }
                Action::Compute => { bench.compute(); }
                Action::Fail(fault) => { bench.compute_with(fault); }
                Action::Apply => { bench.apply(); }
                Action::LoseShard => bench.lose_shard(),
            }
            prop_assert_eq!(bench.scheduler.check_integrity(), Ok(()));
        }
        bench.run_to_end();
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
