//! Grammars: their ends, the tokens that they force, and their way to the shard.

use super::*;
use crate::request::StopConditions;

fn constrained(prompt: Vec<u32>, max_new_tokens: usize) -> GenerationRequest {
    GenerationRequest {
        grammar: Some("{}".into()),
        ..request(prompt, max_new_tokens, Priority::Normal)
    }
}

/// The ids of all tokens, and the reason of the end.
fn answer(events: &mut Events) -> (Vec<u32>, Option<FinishReason>) {
    let mut ids = Vec::new();
    let mut reason = None;
    while let Ok(event) = events.try_recv() {
        if let Event::Token(token) = event.expect("no failure") {
            assert_eq!(reason, None, "nothing comes after the end");
            ids.push(token.id);
            reason = token.finish.map(|finish| finish.reason);
        }
    }
    (ids, reason)
}

#[test]
fn a_sequence_ends_with_its_grammar_though_a_step_of_it_is_in_flight() {
    let mut harness = Harness::new(64, 64, 4);
    let (_, mut events) = harness.submit(GenerationRequest {
        stop: StopConditions {
            ignore_eos: true,
            min_new_tokens: 9,
            ..StopConditions::default()
        },
        ..constrained(vec![1, 2, 3], 50)
    });
    let (_, mut other) = harness.submit(request(vec![7], 12, Priority::Normal));
    for _ in 0..3 {
        while harness.schedule() {}
        harness.compute();
        harness.apply();
    }
    while harness.schedule() {}
    assert_eq!(harness.steps.len(), 2);
    harness.compute();
    harness.results[0].ended = vec![harness.steps[0].sequence_ids[0]];
    harness.apply();
    let expected = continuation(&[1, 2, 3], 4);
    assert_eq!(
        answer(&mut events),
        (expected, Some(FinishReason::EndOfSequence))
    );
    harness.run_to_end();
    assert_eq!(tokens(&mut other), continuation(&[7], 12));
}

#[test]
fn the_last_of_several_tokens_ends_the_grammar() {
    let mut harness = Harness::new(64, 64, 4).speculating(4, 32);
    let (_, mut events) = harness.submit(constrained(vec![1, 2, 3], 50));
    harness.schedule();
    harness.compute();
    force(&mut harness, 3);
    harness.apply();
    harness.schedule();
    assert_eq!(harness.steps[0].drafts.len(), 3);
    harness.compute();
    harness.results[0].ended = harness.results[0].sequence_ids[..1].to_vec();
    harness.apply();
    let expected = continuation(&[1, 2, 3], 5);
    assert_eq!(
        answer(&mut events),
        (expected, Some(FinishReason::EndOfSequence))
    );
    harness.run_to_end();
}

/// Lets the result that is due next force the next `count` tokens of the first sequence.
fn force(harness: &mut Harness, count: usize) {
    let result = &mut harness.results[0];
    let id = result.sequence_ids[0];
    let known = &harness.shard.sequences[&id];
    result.forced = known.next_tokens(count);
    result.forced_sequence_ids = vec![id];
    result.num_forced = vec![count as u32];
}

#[test]
fn forced_tokens_are_drafted_without_any_trust() {
    let mut harness = Harness::new(64, 64, 4).speculating(4, 32);
    let (_, mut events) = harness.submit(constrained(vec![1, 2, 3], 12));
    harness.schedule();
    harness.compute();
    force(&mut harness, 9);
    harness.apply();
    harness.schedule();
    assert_eq!(harness.steps[0].drafts.len(), 4, "up to --speculate");
    assert!(!harness.schedule(), "the next tokens are not known");
    harness.compute();
    harness.apply();
    harness.schedule();
    assert!(harness.steps[0].drafts.is_empty(), "nothing is forced now");
    harness.run_to_end();
    assert_eq!(tokens(&mut events), continuation(&[1, 2, 3], 12));
}

#[test]
fn forced_tokens_are_drafted_without_guesses() {
    let mut harness = Harness::new(64, 64, 4).jumping_ahead(4, 32);
    // A text that repeats itself, of which nothing is guessed.
    let prompt = vec![1, 2, 1, 2, 1, 2, 1, 2];
    let (_, mut events) = harness.submit(constrained(prompt.clone(), 12));
    harness.schedule();
    harness.compute();
    force(&mut harness, 3);
    harness.apply();
    harness.schedule();
    assert_eq!(harness.steps[0].drafts.len(), 3);
    harness.run_to_end();
    assert_eq!(harness.shard.num_drafts, 3, "nothing else is drafted");
    assert_eq!(tokens(&mut events), continuation(&prompt, 12));
}

#[test]
fn requests_without_a_grammar_do_not_wait_for_forced_tokens() {
    let mut harness = Harness::new(64, 64, 4).jumping_ahead(4, 32);
    let (_, mut events) = harness.submit(constrained(vec![1, 2, 3], 12));
    let (_, mut other) = harness.submit(request(vec![7], 12, Priority::Normal));
    harness.schedule();
    harness.compute();
    force(&mut harness, 3);
    harness.apply();
    harness.run_to_end();
    assert_eq!(harness.shard.num_drafts, 0);
    assert_eq!(tokens(&mut events), continuation(&[1, 2, 3], 12));
    assert_eq!(tokens(&mut other), continuation(&[7], 12));
}

#[test]
fn forced_tokens_are_not_drafted_where_no_drafts_are_taken() {
    let mut harness = Harness::new(64, 64, 4);
    let (_, mut events) = harness.submit(constrained(vec![1, 2, 3], 12));
    harness.schedule();
    harness.compute();
    force(&mut harness, 3);
    harness.apply();
    harness.run_to_end();
    assert_eq!(harness.shard.num_drafts, 0);
    assert_eq!(tokens(&mut events), continuation(&[1, 2, 3], 12));
}

#[test]
fn the_grammar_is_sent_again_to_a_restarted_shard() {
    let mut harness = Harness::new(64, 64, 4);
    let (_, mut events) = harness.submit(constrained(vec![1, 2, 3], 12));
    harness.schedule();
    assert_eq!(harness.steps[0].admitted[0].grammar, "{}");
    harness.compute();
    harness.apply();
    harness.lose_shard();
    harness.schedule();
    let again = &harness.steps[0].admitted[0];
    assert_eq!(again.grammar, "{}");
    assert_eq!((again.token_ids.len(), again.num_prompt_tokens), (4, 3));
    harness.run_to_end();
    assert_eq!(tokens(&mut events), continuation(&[1, 2, 3], 12));
}

#[test]
fn forced_tokens_that_do_not_fit_together_break_the_contract() {
    let mut harness = Harness::new(64, 64, 4);
    let _events = harness.submit(constrained(vec![1], 5));
    harness.schedule();
    harness.compute();
    harness.results[0].num_forced = vec![1];
    let result = harness.results.pop_front().expect("a result");
    assert!(harness.scheduler.apply(&result, Instant::now()).is_err());
}
