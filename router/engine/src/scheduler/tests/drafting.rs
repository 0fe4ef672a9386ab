//! Drafts, against the same shard as the scheduler's other tests.

use super::*;

/// Repeats itself from the beginning on.
fn repetitive(first: u32) -> Vec<u32> {
    (0..12).map(|t| REPETITIVE + (first + t) % 5).collect()
}

/// Schedules, computes and takes steps one by one until a step with drafts is on its way.
fn until_drafted(bench: &mut Bench) {
    for _ in 0..200 {
        while bench.schedule() {}
        if bench.steps.iter().any(|step| !step.drafts.is_empty()) {
            return;
        }
        bench.compute();
        bench.apply();
    }
    panic!("nothing is drafted");
}

#[test]
fn what_repeats_itself_takes_fewer_steps_and_gives_the_same_tokens() {
    let mut num_steps = Vec::new();
    for most_drafts in [0, 1, 4, 16] {
        let mut bench = Bench::new(64, 64, 4).speculating(most_drafts, 32);
        let (_, mut events) = bench.submit(request(repetitive(0), 100, Priority::Normal));
        bench.run_to_end();
        assert_eq!(tokens(&mut events), continuation(&repetitive(0), 100));
        assert_eq!(bench.shard.num_drafts > 0, most_drafts > 0);
        num_steps.push(bench.shard.last_step);
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
fn what_does_not_repeat_itself_is_not_drafted_and_keeps_two_steps_in_flight() {
    let mut bench = Bench::new(64, 64, 4).speculating(4, 32);
    let (_, mut events) = bench.submit(request(vec![1, 2, 3], 50, Priority::Normal));
    bench.schedule();
    while bench.scheduler.num_sequences() > 0 && bench.schedule() {
        assert_eq!(bench.steps.len(), 2);
        bench.compute();
        bench.apply();
    }
    bench.run_to_end();
    assert_eq!(bench.shard.num_drafts, 0);
    assert_eq!(tokens(&mut events), continuation(&[1, 2, 3], 50));
}

#[test]
fn the_next_step_waits_for_what_becomes_of_drafts() {
    let mut bench = Bench::new(64, 64, 4).speculating(4, 32);
    let (_, mut first) = bench.submit(request(repetitive(0), 60, Priority::Normal));
    let (_, mut second) = bench.submit(request(vec![1, 2, 3], 60, Priority::Normal));
    until_drafted(&mut bench);
    assert_eq!(bench.steps.len(), 1);
    assert_eq!(
        bench.steps[0].sequence_ids.len(),
        2,
        "one batch, not two halves"
    );
    assert!(!bench.schedule());
    bench.compute();
    assert!(!bench.schedule());
    bench.apply();
    assert!(bench.schedule());
    bench.run_to_end();
    assert_eq!(tokens(&mut first), continuation(&repetitive(0), 60));
    assert_eq!(tokens(&mut second), continuation(&[1, 2, 3], 60));
}

#[test]
fn one_that_would_draft_does_not_make_many_others_wait() {
    let mut bench = Bench::new(256, 512, 16).speculating(4, 64);
    let mut others: Vec<Events> = (0..12)
        .map(|i| bench.submit(request(vec![i, 1], 60, Priority::Normal)).1)
        .collect();
    let (_, mut one) = bench.submit(request(repetitive(0), 60, Priority::Normal));
    bench.run_to_end();
    assert_eq!(bench.shard.num_drafts, 0);
    assert_eq!(tokens(&mut one), continuation(&repetitive(0), 60));
    for (i, events) in others.iter_mut().enumerate() {
        assert_eq!(tokens(events), continuation(&[i as u32, 1], 60));
    }
}

#[test]
fn a_step_has_no_more_drafts_than_cost_little() {
    for (num_sequences, limit) in [(1, 4), (3, 8), (4, 5), (4, 4), (6, 4)] {
        let mut bench = Bench::new(256, 512, 8).speculating(8, limit);
        let mut all: Vec<Events> = (0..num_sequences)
            .map(|i| bench.submit(request(repetitive(i), 60, Priority::Normal)).1)
            .collect();
        for _ in 0..500 {
            bench.schedule();
            if let Some(step) = bench.steps.front()
                && !step.drafts.is_empty()
            {
                let num_tokens = step.num_tokens.iter().sum::<u32>() as usize;
                assert!(num_tokens <= limit, "{num_tokens} tokens of {limit}");
            }
            bench.compute();
            bench.apply();
        }
        assert_eq!(bench.shard.num_drafts > 0, (num_sequences as usize) < limit);
        bench.run_to_end();
        for (i, events) in all.iter_mut().enumerate() {
            let prompt = repetitive(i as u32);
            assert_eq!(tokens(events), continuation(&prompt, 60));
        }
    }
}

#[test]
fn nothing_is_drafted_that_could_not_be_used() {
    for max_new_tokens in 1..40 {
        let mut bench = Bench::new(64, 64, 4).speculating(8, 32);
        let prompt = repetitive(0);
        let (_, mut events) =
            bench.submit(request(prompt.clone(), max_new_tokens, Priority::Normal));
        let mut num_needed = 0;
        while bench.schedule() || !bench.steps.is_empty() {
            let steps = bench.steps.iter();
            num_needed += steps
                .map(|step| step.num_new_blocks.iter().sum::<u32>())
                .sum::<u32>();
            while bench.compute() {}
            while bench.apply() {}
        }
        assert_eq!(tokens(&mut events).len(), max_new_tokens);
        let longest = prompt.len() + max_new_tokens;
        assert!(num_needed as usize <= longest.div_ceil(BLOCK_SIZE));
    }
}

#[test]
fn an_end_of_sequence_token_is_not_drafted_and_ends_the_sequence_among_drafts() {
    // Each token is the last one of the sequence in turn, for once as its end and then as the client's stop token.
    let expected = continuation(&repetitive(0), 60);
    for end in REPETITIVE..REPETITIVE + 5 {
        for by_client in [false, true] {
            let mut bench = Bench::new(64, 64, 4).speculating(4, 32);
            let mut request = request(repetitive(0), 60, Priority::Normal);
            if by_client {
                request.stop.token_ids = vec![end];
            } else {
                bench.scheduler.eos_token_ids = vec![end];
            }
            let (_, mut events) = bench.submit(request);
            while bench.scheduler.num_sequences() > 0 {
                bench.schedule();
                assert!(bench.steps.iter().all(|step| !step.drafts.contains(&end)));
                bench.compute();
                bench.apply();
            }
            bench.run_to_end();
            let length = expected.iter().position(|t| *t == end).map(|at| at + 1);
            assert_eq!(tokens(&mut events), expected[..length.unwrap_or(60)]);
        }
    }
}

#[test]
fn what_is_sampled_behind_the_last_token_is_dropped() {
    // A stop string is found by the router alone: drafts behind it are on their way, and taken by the shard.
    let mut bench = Bench::new(64, 64, 4).speculating(4, 32);
    let (_, mut events) = bench.submit(request(repetitive(0), 60, Priority::Normal));
    until_drafted(&mut bench);
    bench.compute();
    let num_sampled = bench.results[0].token_ids.len();
    let key = *bench.scheduler.sequences.keys().next().expect("one runs");
    let sequence = bench.scheduler.sequences.get_mut(&key).expect("it runs");
    let wanted = sequence.num_generated() + 1;
    sequence.request.max_new_tokens = wanted as u32;
    assert!(num_sampled > 1);
    bench.run_to_end();
    assert_eq!(tokens(&mut events), continuation(&repetitive(0), wanted));
}

#[test]
fn drafts_take_no_block_that_others_need_next() {
    let prompt = repetitive(0);
    let held = (prompt.len() + 1).div_ceil(BLOCK_SIZE) as u32;
    let mut bench = Bench::new(held + 2, 64, 1).speculating(8, 32);
    let (_, mut events) = bench.submit(request(prompt.clone(), 12, Priority::Normal));
    while bench.scheduler.num_sequences() > 0 {
        bench.schedule();
        for step in &bench.steps {
            let needs: u32 = step.num_new_blocks.iter().sum();
            assert!(step.drafts.is_empty() || needs <= 1, "{step:?}");
        }
        bench.compute();
        bench.apply();
    }
    bench.run_to_end();
    assert_eq!(tokens(&mut events), continuation(&prompt, 12));
}

#[test]
fn sequences_with_penalties_are_not_drafted() {
    for change in [
        (|sampling| sampling.repetition_penalty = 1.1) as fn(&mut SamplingParameters),
        |sampling| sampling.frequency_penalty = 0.1,
        |sampling| sampling.presence_penalty = -0.1,
    ] {
        let mut bench = Bench::new(64, 64, 4).speculating(4, 32);
        let mut request = request(repetitive(0), 60, Priority::Normal);
        change(&mut request.sampling);
        let (_, mut events) = bench.submit(request);
        bench.run_to_end();
        assert_eq!(bench.shard.num_drafts, 0);
        assert_eq!(tokens(&mut events).len(), 60);
    }
}

#[test]
fn drafts_on_their_way_survive_whatever_happens_to_their_sequence() {
    for what in 0..4 {
        let mut bench = Bench::new(64, 64, 4).speculating(4, 32);
        let (key, mut events) = bench.submit(request(repetitive(0), 60, Priority::Normal));
        until_drafted(&mut bench);
        match what {
            0 => bench.scheduler.preempt(key),
            1 => bench.lose_shard(),
            2 => bench.scheduler.abort(key),
            // Drafts that do harm: the token is computed again without any.
            _ => {
                bench.compute_with(Fault::Nan(0));
                bench.apply();
                bench.schedule();
                assert!(bench.steps[0].drafts.is_empty());
            }
        }
        bench.run_to_end();
        if what != 2 {
            assert_eq!(tokens(&mut events), continuation(&repetitive(0), 60));
        }
    }
}

#[test]
fn a_shard_that_gives_more_tokens_than_were_drafted_breaks_the_contract() {
    let mut bench = Bench::new(64, 64, 4).speculating(4, 32);
    let (_, mut events) = bench.submit(request(repetitive(0), 60, Priority::Normal));
    bench.schedule();
    bench.compute();
    let mut result = bench.results.pop_front().expect("a result");
    result.sequence_ids.push(result.sequence_ids[0]);
    result.token_ids.push(1);
    assert!(bench.scheduler.apply(&result, Instant::now()).is_err());
    assert_eq!(tokens(&mut events), continuation(&repetitive(0), 1));
}

#[test]
fn what_is_computed_among_drafts_is_shared_once_it_is_known_to_be_well() {
    let mut bench = Bench::new(64, 64, 4).speculating(4, 32);
    let (key, mut events) = bench.submit(request(repetitive(0), 60, Priority::Normal));
    // Until the last known token of a step with drafts fills a block.
    loop {
        until_drafted(&mut bench);
        let sequence = &bench.scheduler.sequences[&key];
        if sequence.num_computed.is_multiple_of(BLOCK_SIZE) {
            break;
        }
        bench.compute();
        bench.apply();
    }
    let known = bench.scheduler.sequences[&key].tokens.clone();
    assert_eq!(
        bench.scheduler.pool.num_cached(),
        known.len() / BLOCK_SIZE - 1
    );
    bench.compute_with(Fault::Nan(0));
    bench.apply();
    assert_eq!(
        bench.scheduler.pool.num_cached(),
        known.len() / BLOCK_SIZE - 1
    );
    bench.schedule();
    assert_eq!(bench.scheduler.pool.num_cached(), known.len() / BLOCK_SIZE);
    let (_, mut other) = bench.submit(request(known.clone(), 5, Priority::Normal));
    bench.run_to_end();
    assert_eq!(tokens(&mut events), continuation(&repetitive(0), 60));
    assert_eq!(tokens(&mut other), continuation(&known, 5));
}
