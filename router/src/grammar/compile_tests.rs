use std::str::FromStr;

use gridwork_engine::{Limits, TokenTable};
use gridwork_proto::v1::InfoResponse;
use serde_json::{Value, json};
use tokenizers::Tokenizer;

use super::*;

fn ready() -> Arc<Ready> {
    let vocab: serde_json::Map<String, Value> = (' '..='~')
        .enumerate()
        .map(|(id, c)| (c.to_string(), json!(id)))
        .collect();
    let size = vocab.len() as u32;
    let tokenizer = json!({"version": "1.0", "added_tokens": [], "decoder": {"type": "Fuse"},
                           "model": {"type": "BPE", "vocab": vocab, "merges": []}});
    let tokenizer = Tokenizer::from_str(&tokenizer.to_string()).unwrap();
    Arc::new(Ready {
        info: InfoResponse {
            vocab_size: size,
            ..InfoResponse::default()
        },
        limits: Limits {
            block_size_tokens: 1,
            num_blocks: 1,
            capacity_tokens: 1,
            kv_cache_bytes: 1,
            max_total_tokens: 1,
            max_batch_prefill_tokens: 1,
            max_sequences: 1,
            max_concurrent_requests: 1,
            prefix_cache: false,
            speculate: 0,
            max_drafts: 0,
            draft_step_tokens: 0,
        },
        tokens: Arc::new(TokenTable::of(&tokenizer)),
    })
}

fn num_kept(grammars: &Grammars) -> usize {
    grammars.0.results.lock().unwrap().by_grammar.len()
}

#[tokio::test]
async fn a_grammar_is_compiled_once() {
    let (grammars, ready) = (Grammars::new(1), ready());
    let schema = json!({"type": "integer"});
    for field in ["guided_json", "format"] {
        let grammar = Grammar::from_json_schema(field, schema.clone());
        let serialized = grammars.compile(grammar, &ready).await.unwrap();
        assert!(serialized.contains("\"integer\""));
    }
    assert_eq!(num_kept(&grammars), 1);
}

#[tokio::test]
async fn a_refusal_names_the_field_of_its_own_request() {
    let (grammars, ready) = (Grammars::new(1), ready());
    for field in ["guided_json", "format", "guided_json"] {
        let schema = json!({"items": {"type": "strung"}});
        let grammar = Grammar::from_json_schema(field, schema);
        let error = grammars.compile(grammar, &ready).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Validation);
        assert_eq!(error.field, Some(format!("{field}.items")));
    }
}

#[tokio::test]
async fn a_grammar_that_is_too_large_is_not_kept() {
    let (grammars, ready) = (Grammars::new(1), ready());
    let schema = json!({"description": "x".repeat(1_000_000)});
    let grammar = Grammar::from_json_schema("guided_json", schema);
    let error = grammars.compile(grammar, &ready).await.unwrap_err();
    assert!(error.message.contains("bytes"), "{error}");
    assert_eq!(num_kept(&grammars), 0);
}

#[tokio::test]
async fn only_the_latest_results_are_kept() {
    let (grammars, ready) = (Grammars::new(2), ready());
    for number in 0..=CACHE_SIZE {
        let grammar = Grammar::from_regex("regex", &number.to_string());
        grammars.compile(grammar, &ready).await.unwrap();
    }
    assert_eq!(num_kept(&grammars), CACHE_SIZE);
    let bytes = grammars.0.results.lock().unwrap().bytes;
    assert!(bytes > 0 && bytes < CACHE_BYTES, "{bytes}");
}

#[tokio::test]
async fn requests_beyond_those_that_may_wait_are_told_to_come_back() {
    let (grammars, ready) = (Grammars::new(1), ready());
    let _waiting: Vec<_> = (0..MAX_WAITING)
        .map(|_| grammars.0.enter().unwrap())
        .collect();
    let grammar = Grammar::from_regex("regex", "a");
    let error = grammars.compile(grammar, &ready).await.unwrap_err();
    assert_eq!(
        (error.kind, error.retry_after_s),
        (ErrorKind::Overloaded, Some(1))
    );
}
