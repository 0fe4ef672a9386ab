//! Drafts, against the same shard as the scheduler's other tests.

use super::*;

/// A prompt that repeats itself from its beginning on.
fn repetitive(first: u32) -> Vec<u32> {
    (0..12).map(|t| REPETITIVE + (first + t) % 5).collect()
}

/// Schedules, computes and applies steps one by one until a step with drafts is in flight.
fn run_until_drafted(harness: &mut Harness) {
    for _ in 0..200 {
        while harness.schedule() {}
        if harness.steps.iter().any(|step| !step.drafts.is_empty()) {
            return;
        }
        harness.compute();
        harness.apply();
    }
    panic!("nothing is drafted");
}

#[test]
fn repetition_takes_fewer_steps_for_the_same_tokens() {
    let mut num_steps = Vec::new();
    for max_drafts in [0, 1, 4, 16] {
        let mut harness = Harness::new(64, 64, 4).speculating(max_drafts, 32);
        let (_, mut events) = harness.submit(request(repetitive(0), 100, Priority::Normal));
        harness.run_to_end();
        assert_eq!(tokens(&mut events), continuation(&repetitive(0), 100));
        assert_eq!(harness.shard.num_drafts > 0, max_drafts > 0);
        num_steps.push(harness.shard.last_step);
    }
    let [without, one, four, sixteen] = num_steps[..] else {
        panic!("four runs");
    };
    assert!(
        without > one && one > four && four >= sixteen,
        "{num_steps:?}"
    );
}

#[test]
fn without_repetition_nothing_is_drafted_and_two_steps_are_in_flight() {
    let mut harness = Harness::new(64, 64, 4).speculating(4, 32);
    let (_, mut events) = harness.submit(request(vec![1, 2, 3], 50, Priority::Normal));
    harness.schedule();
    while harness.scheduler.num_sequences() > 0 && harness.schedule() {
        assert_eq!(harness.steps.len(), 2);
        harness.compute();
        harness.apply();
    }
    harness.run_to_end();
    assert_eq!(harness.shard.num_drafts, 0);
    assert_eq!(tokens(&mut events), continuation(&[1, 2, 3], 50));
}

#[test]
fn the_next_step_waits_for_the_result_of_drafts() {
    let mut harness = Harness::new(64, 64, 4).speculating(4, 32);
    let (_, mut first) = harness.submit(request(repetitive(0), 60, Priority::Normal));
    let (_, mut second) = harness.submit(request(vec![1, 2, 3], 60, Priority::Normal));
    run_until_drafted(&mut harness);
    assert_eq!(harness.steps.len(), 1);
    assert_eq!(
        harness.steps[0].sequence_ids.len(),
        2,
        "one batch, not two halves"
    );
    assert!(!harness.schedule());
    harness.compute();
    assert!(!harness.schedule());
    harness.apply();
    assert!(harness.schedule());
    harness.run_to_end();
    assert_eq!(tokens(&mut first), continuation(&repetitive(0), 60));
    assert_eq!(tokens(&mut second), continuation(&[1, 2, 3], 60));
}

#[test]
fn drafting_stops_when_many_other_sequences_would_wait() {
    let mut harness = Harness::new(256, 512, 16).speculating(4, 64);
    let mut others: Vec<Events> = (0..12)
        .map(|i| harness.submit(request(vec![i, 1], 60, Priority::Normal)).1)
        .collect();
    let (_, mut one) = harness.submit(request(repetitive(0), 60, Priority::Normal));
    harness.run_to_end();
    assert_eq!(harness.shard.num_drafts, 0);
    assert_eq!(tokens(&mut one), continuation(&repetitive(0), 60));
    for (i, events) in others.iter_mut().enumerate() {
        assert_eq!(tokens(events), continuation(&[i as u32, 1], 60));
    }
}

#[test]
fn drafts_of_a_step_are_limited_by_its_cheap_tokens() {
    for (num_sequences, limit) in [(1, 4), (3, 8), (4, 5), (4, 4), (6, 4)] {
        let mut harness = Harness::new(256, 512, 8).speculating(8, limit);
        let mut all: Vec<Events> = (0..num_sequences)
            .map(|i| {
                harness
                    .submit(request(repetitive(i), 60, Priority::Normal))
                    .1
            })
            .collect();
        for _ in 0..500 {
            harness.schedule();
            if let Some(step) = harness.steps.front()
                && !step.drafts.is_empty()
            {
                let num_tokens = step.num_tokens.iter().sum::<u32>() as usize;
                assert!(num_tokens <= limit, "{num_tokens} tokens of {limit}");
            }
            harness.compute();
            harness.apply();
        }
        assert_eq!(
            harness.shard.num_drafts > 0,
            (num_sequences as usize) < limit
        );
        harness.run_to_end();
        for (i, events) in all.iter_mut().enumerate() {
            let prompt = repetitive(i as u32);
            assert_eq!(tokens(events), continuation(&prompt, 60));
        }
    }
}

#[test]
fn drafts_beyond_the_last_allowed_token_are_not_made() {
    for max_new_tokens in 1..40 {
        let mut harness = Harness::new(64, 64, 4).speculating(8, 32);
        let prompt = repetitive(0);
        let (_, mut events) =
            harness.submit(request(prompt.clone(), max_new_tokens, Priority::Normal));
        let mut num_needed = 0;
        while harness.schedule() || !harness.steps.is_empty() {
            let steps = harness.steps.iter();
            num_needed += steps
                .map(|step| step.num_new_blocks.iter().sum::<u32>())
                .sum::<u32>();
            while harness.compute() {}
            while harness.apply() {}
        }
        assert_eq!(tokens(&mut events).len(), max_new_tokens);
        let longest = prompt.len() + max_new_tokens;
        assert!(num_needed as usize <= longest.div_ceil(BLOCK_SIZE));
    }
}

#[test]
fn an_end_token_is_not_drafted_and_ends_a_sequence_with_drafts() {
    // Each token ends the sequence in turn, first as an end-of-sequence token and then as the client's stop token.
    let expected = continuation(&repetitive(0), 60);
    for end in REPETITIVE..REPETITIVE + 5 {
        for by_client in [false, true] {
            let mut harness = Harness::new(64, 64, 4).speculating(4, 32);
            let mut request = request(repetitive(0), 60, Priority::Normal);
            if by_client {
                request.stop.token_ids = vec![end];
            } else {
                harness.scheduler.eos_token_ids = vec![end];
            }
            let (_, mut events) = harness.submit(request);
            while harness.scheduler.num_sequences() > 0 {
                harness.schedule();
                assert!(harness.steps.iter().all(|step| !step.drafts.contains(&end)));
                harness.compute();
                harness.apply();
            }
            harness.run_to_end();
            let length = expected.iter().position(|t| *t == end).map(|at| at + 1);
            assert_eq!(tokens(&mut events), expected[..length.unwrap_or(60)]);
        }
    }
}

#[test]
fn tokens_sampled_after_the_last_one_are_dropped() {
    // Only the router finds stop strings: drafts behind one are in flight, and the shard accepts them.
    let mut harness = Harness::new(64, 64, 4).speculating(4, 32);
    let (_, mut events) = harness.submit(request(repetitive(0), 60, Priority::Normal));
    run_until_drafted(&mut harness);
    harness.compute();
    let num_sampled = harness.results[0].token_ids.len();
    let key = *harness.scheduler.sequences.keys().next().expect("one runs");
    let sequence = harness.scheduler.sequences.get_mut(&key).expect("it runs");
    let wanted = sequence.num_generated() + 1;
    sequence.request.max_new_tokens = wanted as u32;
    assert!(num_sampled > 1);
    harness.run_to_end();
    assert_eq!(tokens(&mut events), continuation(&repetitive(0), wanted));
}

#[test]
fn drafts_leave_the_blocks_that_others_need_next() {
    let prompt = repetitive(0);
    let held = (prompt.len() + 1).div_ceil(BLOCK_SIZE) as u32;
    let mut harness = Harness::new(held + 2, 64, 1).speculating(8, 32);
    let (_, mut events) = harness.submit(request(prompt.clone(), 12, Priority::Normal));
    while harness.scheduler.num_sequences() > 0 {
        harness.schedule();
        for step in &harness.steps {
            let needs: u32 = step.num_new_blocks.iter().sum();
            assert!(step.drafts.is_empty() || needs <= 1, "{step:?}");
        }
        harness.compute();
        harness.apply();
    }
    harness.run_to_end();
    assert_eq!(tokens(&mut events), continuation(&prompt, 12));
}

#[test]
fn sequences_with_penalties_are_not_drafted() {
    for change in [
        (|sampling| sampling.repetition_penalty = 1.1) as fn(&mut SamplingParameters),
        |sampling| sampling.frequency_penalty = 0.1,
        |sampling| sampling.presence_penalty = -0.1,
    ] {
        let mut harness = Harness::new(64, 64, 4).speculating(4, 32);
        let mut request = request(repetitive(0), 60, Priority::Normal);
        change(&mut request.sampling);
        let (_, mut events) = harness.submit(request);
        harness.run_to_end();
        assert_eq!(harness.shard.num_drafts, 0);
        assert_eq!(tokens(&mut events).len(), 60);
    }
}

#[test]
fn drafts_in_flight_survive_preemption_aborts_and_failures() {
    for what in 0..4 {
        let mut harness = Harness::new(64, 64, 4).speculating(4, 32);
        let (key, mut events) = harness.submit(request(repetitive(0), 60, Priority::Normal));
        run_until_drafted(&mut harness);
        match what {
            0 => harness.scheduler.preempt(key),
            1 => harness.lose_shard(),
            2 => harness.scheduler.abort(key),
            // Drafts with NaN logits: the token is recomputed without any.
            _ => {
                harness.compute_with(Fault::Nan(0));
                harness.apply();
                harness.schedule();
                assert!(harness.steps[0].drafts.is_empty());
            }
        }
        harness.run_to_end();
        if what != 2 {
            assert_eq!(tokens(&mut events), continuation(&repetitive(0), 60));
        }
    }
}

#[test]
fn more_tokens_than_drafts_break_the_contract() {
    let mut harness = Harness::new(64, 64, 4).speculating(4, 32);
    let (_, mut events) = harness.submit(request(repetitive(0), 60, Priority::Normal));
    harness.schedule();
    harness.compute();
    let mut result = harness.results.pop_front().expect("a result");
    result.sequence_ids.push(result.sequence_ids[0]);
    result.token_ids.push(1);
    assert!(harness.scheduler.apply(&result, Instant::now()).is_err());
    assert_eq!(tokens(&mut events), continuation(&repetitive(0), 1));
}

#[test]
fn blocks_computed_with_drafts_are_shared_once_confirmed() {
    let mut harness = Harness::new(64, 64, 4).speculating(4, 32);
    let (key, mut events) = harness.submit(request(repetitive(0), 60, Priority::Normal));
    // Repeats steps until the last known token of a step with drafts fills a block.
    loop {
        run_until_drafted(&mut harness);
        let sequence = &harness.scheduler.sequences[&key];
        if sequence.num_computed.is_multiple_of(BLOCK_SIZE) {
            break;
        }
        harness.compute();
        harness.apply();
    }
    let known = harness.scheduler.sequences[&key].tokens.clone();
    assert_eq!(
        harness.scheduler.pool.num_cached(),
        known.len() / BLOCK_SIZE - 1
    );
    harness.compute_with(Fault::Nan(0));
    harness.apply();
    assert_eq!(
        harness.scheduler.pool.num_cached(),
        known.len() / BLOCK_SIZE - 1
    );
    harness.schedule();
    assert_eq!(
        harness.scheduler.pool.num_cached(),
        known.len() / BLOCK_SIZE
    );
    let (_, mut other) = harness.submit(request(known.clone(), 5, Priority::Normal));
    harness.run_to_end();
    assert_eq!(tokens(&mut events), continuation(&repetitive(0), 60));
    assert_eq!(tokens(&mut other), continuation(&known, 5));
}
