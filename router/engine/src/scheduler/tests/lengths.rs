//! Models whose keys depend on how many tokens are computed together, against the same shard as the scheduler's other
//! tests, which notices whenever a sequence reads keys of another class.

use super::*;

fn prompt(count: u32) -> Vec<u32> {
    (100..100 + count).collect()
}

/// Number of the prompt's tokens that were cached. Checks that the generated tokens are correct.
fn cached(harness: &mut Harness, prompt: Vec<u32>, max_new_tokens: usize) -> u32 {
    let request = request(prompt.clone(), max_new_tokens, Priority::Normal);
    let (_, mut events) = harness.submit(request);
    harness.run_to_end();
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
fn prompts_on_two_sides_of_the_border_share_no_blocks() {
    let mut harness = Harness::new(64, 512, 4).following(20, false, 0);
    assert_eq!(cached(&mut harness, prompt(40), 1), 0);
    assert_eq!(cached(&mut harness, prompt(16), 1), 0, "other keys");
    assert_eq!(cached(&mut harness, prompt(19), 1), 16, "the same keys");
    assert_eq!(cached(&mut harness, prompt(41), 1), 40, "the same keys");
}

#[test]
fn with_keys_per_length_only_equal_prompts_share_blocks() {
    let mut harness = Harness::new(64, 512, 4).following(20, true, 0);
    assert_eq!(cached(&mut harness, prompt(41), 1), 0);
    assert_eq!(cached(&mut harness, prompt(42), 1), 0);
    assert_eq!(cached(&mut harness, prompt(41), 1), 40);
}

#[test]
fn a_sequence_that_crosses_the_border_is_recomputed_invisibly() {
    let mut harness = Harness::new(64, 512, 4).following(20, false, 21);
    let (_, mut beside) = harness.submit(request(vec![7; 3], 30, Priority::Normal));
    assert_eq!(cached(&mut harness, prompt(10), 30), 0);
    assert_eq!(tokens(&mut beside), continuation(&[7; 3], 30));
    // Every token except each sequence's last is computed once, and up to the border once more.
    assert_eq!(harness.shard.num_computed_tokens, 39 + 32 + 2 * 20);
}

#[test]
fn recomputed_blocks_are_shared_with_sequences_of_that_length() {
    let mut harness = Harness::new(64, 512, 4).following(20, false, 21);
    let mut history = prompt(10);
    cached(&mut harness, history.clone(), 30);
    history.extend(continuation(&history.clone(), 30));
    assert_eq!(cached(&mut harness, history, 1), 36);
    assert_eq!(
        cached(&mut harness, prompt(10), 1),
        8,
        "and before it crossed"
    );
}

#[test]
fn drafts_stop_where_a_sequence_is_recomputed() {
    for border in 8..20 {
        let mut harness =
            Harness::new(64, 512, 4)
                .speculating(5, 16)
                .following(border, false, border + 1);
        let repetitive = vec![REPETITIVE, REPETITIVE + 1, REPETITIVE + 2];
        assert_eq!(cached(&mut harness, repetitive, 40), 0);
        assert!(harness.shard.num_drafts > 0);
    }
}
