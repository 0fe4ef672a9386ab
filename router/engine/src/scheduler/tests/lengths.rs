//! Models whose keys depend on how many tokens are computed together, against the same shard as the scheduler's other
//! tests, which notices whenever a sequence reads keys of another class.

use super::*;

fn prompt(count: u32) -> Vec<u32> {
    (100..100 + count).collect()
}

/// How many of its prompt's tokens were in the cache; its tokens must be right.
fn cached(bench: &mut Bench, prompt: Vec<u32>, max_new_tokens: usize) -> u32 {
    let request = request(prompt.clone(), max_new_tokens, Priority::Normal);
    let (_, mut events) = bench.submit(request);
    bench.run_to_end();
    let (mut ids, mut cached) = (Vec::new(), 0);
    while let Ok(event) = events.try_recv() {
        if let Event::Token(token) = event.expect("no failure") {
            ids.push(token.id);
            cached = token.finish.map_or(0, |finish| finish.num_cached_tokens);
        }
    }
    assert_eq!(ids, continuation(&prompt, max_new_tokens));
    cached
}

#[test]
fn a_prompt_beyond_the_border_shares_nothing_with_one_up_to_it() {
    let mut bench = Bench::new(64, 512, 4).following(20, false, 0);
    assert_eq!(cached(&mut bench, prompt(40), 1), 0);
    assert_eq!(cached(&mut bench, prompt(16), 1), 0, "other keys");
    assert_eq!(cached(&mut bench, prompt(19), 1), 16, "the same keys");
    assert_eq!(cached(&mut bench, prompt(41), 1), 40, "the same keys");
}

#[test]
fn where_every_length_has_keys_of_its_own_equal_prompts_alone_share_them() {
    let mut bench = Bench::new(64, 512, 4).following(20, true, 0);
    assert_eq!(cached(&mut bench, prompt(41), 1), 0);
    assert_eq!(cached(&mut bench, prompt(42), 1), 0);
    assert_eq!(cached(&mut bench, prompt(41), 1), 40);
}

#[test]
fn a_sequence_that_crosses_is_computed_anew_and_nobody_notices() {
    let mut bench = Bench::new(64, 512, 4).following(20, false, 21);
    let (_, mut beside) = bench.submit(request(vec![7; 3], 30, Priority::Normal));
    assert_eq!(cached(&mut bench, prompt(10), 30), 0);
    assert_eq!(tokens(&mut beside), continuation(&[7; 3], 30));
    // All tokens but the last of each: once, and up to the border once more.
    assert_eq!(bench.shard.num_computed_tokens, 39 + 32 + 2 * 20);
}

#[test]
fn what_was_computed_anew_is_found_by_the_next_of_its_length() {
    let mut bench = Bench::new(64, 512, 4).following(20, false, 21);
    let mut history = prompt(10);
    cached(&mut bench, history.clone(), 30);
    history.extend(continuation(&history.clone(), 30));
    assert_eq!(cached(&mut bench, history, 1), 36);
    assert_eq!(
        cached(&mut bench, prompt(10), 1),
        8,
        "and before it crossed"
    );
}

#[test]
fn drafts_stop_where_a_sequence_is_computed_anew() {
    for border in 8..20 {
        let mut bench =
            Bench::new(64, 512, 4)
                .speculating(5, 16)
                .following(border, false, border + 1);
        let repetitive = vec![REPETITIVE, REPETITIVE + 1, REPETITIVE + 2];
        assert_eq!(cached(&mut bench, repetitive, 40), 0);
        assert!(bench.shard.num_drafts > 0);
    }
}
