use std::sync::Arc;

use tokenizers::Tokenizer;
use tokenizers::models::wordlevel::WordLevel;
use tokenizers::pre_tokenizers::whitespace::Whitespace;

use super::*;
use crate::error::ErrorKind;
use crate::generation::token_runs::NEVER;
use crate::generation::watermark::{self, Watermark};
use crate::tokenizing::tokenizer_regex::SlowRegexes;

const VOCAB: u32 = 4;
const VOCABULARY: Vocabulary = Vocabulary {
    inputs: VOCAB,
    outputs: VOCAB,
};

fn validator() -> Validator {
    let vocab = ["[UNK]", "a", "b", "c", "new"]
        .iter()
        .enumerate()
        .map(|(id, word)| (word.to_string(), id as u32));
    let model = WordLevel::builder()
        .vocab(vocab.collect())
        .unk_token("[UNK]".into())
        .build()
        .expect("a vocabulary");
    let mut tokenizer = Tokenizer::new(model);
    tokenizer.with_pre_tokenizer(Some(Whitespace));
    let limits = ValidationLimits {
        max_stop_sequences: 4,
        max_top_n_tokens: 5,
        max_input_tokens: None,
        watermark: watermark::Settings {
            share: 0.5,
            bias: 2.0,
            key: 7,
        },
    };
    Validator::new(
        TextEncoder::local(Arc::new(tokenizer), SlowRegexes::default()),
        limits,
        Workers::new(1),
    )
}

fn engine_limits() -> Limits {
    Limits {
        block_size_tokens: 16,
        num_blocks: 8,
        capacity_tokens: 128,
        kv_cache_bytes: 0,
        max_total_tokens: 10,
        max_batch_prefill_tokens: 64,
        max_sequences: 4,
        max_concurrent_requests: 4,
        prefix_cache: true,
        speculate: 0,
        max_drafts: 0,
        draft_step_tokens: 0,
    }
}

async fn validate(text: &str, parameters: Parameters) -> Result<Valid, ApiError> {
    let prompt = Prompt::Text {
        text: text.into(),
        add_special_tokens: true,
    };
    validator()
        .validate(
            prompt,
            parameters,
            &FieldNames::TGI,
            &engine_limits(),
            VOCABULARY,
            Span::none(),
        )
        .await
}

type Change = fn(&mut Parameters);

#[tokio::test]
async fn values_out_of_range_are_refused_by_name() {
    let cases: Vec<(&str, Change)> = vec![
        ("temperature", |p| p.temperature = Some(-0.1)),
        ("temperature", |p| p.temperature = Some(f32::NAN)),
        ("temperature", |p| p.temperature = Some(f32::INFINITY)),
        ("repetition_penalty", |p| p.repetition_penalty = Some(0.0)),
        ("repetition_penalty", |p| {
            p.repetition_penalty = Some(f32::NAN)
        }),
        ("frequency_penalty", |p| p.frequency_penalty = Some(2.1)),
        ("frequency_penalty", |p| {
            p.frequency_penalty = Some(f32::NAN)
        }),
        ("presence_penalty", |p| p.presence_penalty = Some(-2.1)),
        ("top_p", |p| p.top_p = Some(0.0)),
        ("top_p", |p| p.top_p = Some(1.01)),
        ("top_p", |p| p.top_p = Some(f32::NAN)),
        ("typical_p", |p| p.typical_p = Some(-1.0)),
        ("min_p", |p| p.min_p = Some(1.1)),
        ("min_p", |p| p.min_p = Some(f32::NAN)),
        ("max_new_tokens", |p| p.max_new_tokens = Some(0)),
        ("stop", |p| p.stop = Some(vec!["x".into(); 5])),
        ("stop", |p| p.stop = Some(vec![String::new()])),
        ("top_n_tokens", |p| p.top_n_tokens = Some(6)),
        ("logit_bias", |p| p.logit_bias = Some(vec![(VOCAB, 1.0)])),
        ("logit_bias", |p| p.logit_bias = Some(vec![(1, 101.0)])),
        ("logit_bias", |p| p.logit_bias = Some(vec![(1, f32::NAN)])),
        ("stop_token_ids", |p| p.stop_token_ids = Some(vec![VOCAB])),
        ("truncate", |p| p.truncate = Some(0)),
        ("truncate", |p| p.truncate = Some(10)),
    ];
    for (field, change) in cases {
        let mut parameters = Parameters::default();
        change(&mut parameters);
        let error = validate("a b", parameters.clone()).await.expect_err(field);
        assert_eq!(
            (error.kind, error.field.as_deref()),
            (ErrorKind::Validation, Some(field)),
            "{parameters:?}"
        );
        assert!(error.message.contains(field), "{error}");
    }
}

#[tokio::test]
async fn a_minimum_of_tokens_above_the_maximum_is_refused_by_both_names() {
    // Without a maximum, it is the rest of the context, or the default.
    for (min, max, default, most) in [
        (Some(4), Some(3), None, Some(3)),
        (Some(9), None, None, Some(8)),
        (Some(6), None, Some(5), Some(5)),
        (Some(3), Some(3), None, None),
        (Some(8), None, None, None),
        (Some(5), None, Some(5), None),
        (Some(0), Some(3), None, None),
        (None, Some(3), None, None),
    ] {
        let parameters = Parameters {
            min_new_tokens: min,
            max_new_tokens: max,
            default_max_new_tokens: default,
            ..Parameters::default()
        };
        match (validate("a b", parameters).await, most) {
            (Ok(valid), None) => {
                assert_eq!(valid.request.stop.min_new_tokens, min.unwrap_or(0));
            }
            (Err(error), Some(most)) => {
                assert_eq!(error.field.as_deref(), Some("min_new_tokens"));
                let given = min.unwrap_or(0);
                assert_eq!(
                    error.message,
                    format!(
                        "`min_new_tokens` must be at most `max_new_tokens`, which is {most}. Given: {given}"
                    )
                );
            }
            (result, _) => panic!("{min:?} {max:?} {default:?}: {result:?}"),
        }
    }
}

#[tokio::test]
async fn requests_beyond_the_context_have_their_own_error_kind() {
    for (text, max_new_tokens, field) in [
        ("a b", Some(9), "max_new_tokens"),
        ("a b", Some(u32::MAX), "max_new_tokens"),
        ("a a a a a a a a a a", None, "inputs"),
    ] {
        let parameters = Parameters {
            max_new_tokens,
            ..Parameters::default()
        };
        let error = validate(text, parameters).await.expect_err(field);
        assert_eq!(
            (error.kind, error.field.as_deref()),
            (ErrorKind::TooLong, Some(field))
        );
    }
    let fits = Parameters {
        max_new_tokens: Some(8),
        ..Parameters::default()
    };
    validate("a b", fits).await.expect("two and eight are ten");
}

#[tokio::test]
async fn empty_long_and_unknown_prompts_are_refused() {
    for text in ["", &"a ".repeat(10)] {
        let error = validate(text, Parameters::default())
            .await
            .expect_err("refused");
        assert_eq!(error.field.as_deref(), Some("inputs"));
    }
    for ids in [vec![], vec![1, VOCAB]] {
        let error = validator()
            .validate(
                Prompt::Tokens(ids),
                Parameters::default(),
                &FieldNames::TGI,
                &engine_limits(),
                VOCABULARY,
                Span::none(),
            )
            .await
            .expect_err("refused");
        assert_eq!(error.field.as_deref(), Some("inputs"));
    }
}

#[tokio::test]
async fn a_token_unknown_to_the_model_is_refused_unless_truncated() {
    let error = validate("a new", Parameters::default())
        .await
        .expect_err("refused");
    assert_eq!(
        (error.kind, error.field.as_deref()),
        (ErrorKind::Validation, Some("inputs"))
    );
    for words in ["`new`", "token 4", "4 tokens"] {
        assert!(error.message.contains(words), "{error}");
    }
    let truncated = Parameters {
        truncate: Some(1),
        ..Parameters::default()
    };
    let valid = validate("new a", truncated).await.expect("valid");
    assert_eq!(valid.prompt_ids(), [1]);
}

#[tokio::test]
async fn max_new_tokens_defaults_to_the_rest_of_the_context() {
    let valid = validate("a b c", Parameters::default())
        .await
        .expect("valid");
    assert_eq!(
        (valid.prompt_ids().len(), valid.request.max_new_tokens),
        (3, 7)
    );
}

#[tokio::test]
async fn truncation_keeps_the_end() {
    let parameters = Parameters {
        truncate: Some(2),
        ..Parameters::default()
    };
    assert_eq!(
        validate("a b c", parameters)
            .await
            .expect("valid")
            .prompt_ids(),
        [2, 3]
    );
}

#[tokio::test]
async fn temperature_zero_is_greedy_and_repeats_have_other_seeds() {
    let greedy = Parameters {
        temperature: Some(0.0),
        ..Parameters::default()
    };
    let valid = validate("a", greedy).await.expect("valid");
    assert!(valid.request.sampling.greedy && valid.seed.is_none());
    let seeded = Parameters {
        seed: Some(u64::MAX),
        ..Parameters::default()
    };
    let seeds: Vec<_> = validate("a", seeded)
        .await
        .expect("valid")
        .repeat(2)
        .iter()
        .map(|v| v.seed)
        .collect();
    assert_eq!(seeds, [Some(u64::MAX), Some(0)]);
}

#[tokio::test]
async fn a_maximum_beyond_the_context_is_lowered_where_the_api_lowers_it() {
    for (given, expected) in [(32_000, 8), (3, 3)] {
        let parameters = Parameters {
            max_new_tokens: Some(given),
            clamps_max_new_tokens: true,
            ..Parameters::default()
        };
        let valid = validate("a b", parameters).await.expect("a valid request");
        assert_eq!(valid.request.max_new_tokens, expected);
    }
}

#[tokio::test]
async fn forbidden_words_are_forbidden_with_and_without_a_space() {
    let parameters = Parameters {
        bad_words: Some(vec!["c".into(), " a b".into()]),
        bad_words_ids: Some(vec![vec![2], vec![3, 1]]),
        suppress_tokens: Some(vec![1]),
        sequence_bias: Some(vec![(vec![2, 3], 1.5)]),
        ..Parameters::default()
    };
    let sampling = validate("a", parameters).await.unwrap().request.sampling;
    // The tokenizer of these tests drops spaces, so that both forms of a word are the same tokens.
    assert_eq!(sampling.logit_bias_tokens, [2, 1, 3]);
    assert_eq!(sampling.logit_bias_values, [NEVER; 3]);
    assert_eq!(sampling.run_tokens, [3, 1, 2, 3, 1, 2]);
    assert_eq!(sampling.run_lengths, [2, 2, 2]);
    assert_eq!(sampling.run_biases, [NEVER, 1.5, NEVER]);
}

#[tokio::test]
async fn a_watermark_is_that_of_the_server_unless_the_request_gives_another() {
    let other = watermark::Settings {
        share: 0.25,
        bias: 1.0,
        key: 9,
    };
    for (asked, expected) in [
        (None, (0.0, 0.0, 0)),
        (Some(Watermark::None), (0.0, 0.0, 0)),
        (Some(Watermark::OfServer), (0.5, 2.0, 7)),
        (Some(Watermark::Given(other)), (0.25, 1.0, 9)),
    ] {
        let parameters = Parameters {
            watermark: asked,
            ..Parameters::default()
        };
        let sampling = validate("a", parameters).await.unwrap().request.sampling;
        let found = (
            sampling.watermark_share,
            sampling.watermark_bias,
            sampling.watermark_key,
        );
        assert_eq!(found, expected);
    }
}

#[tokio::test]
async fn default_lengths_and_stop_sequences_give_way_to_the_requests() {
    // Prompts of two tokens, in a context of ten.
    for (own, max, expected) in [
        (None, None, 5),
        (None, Some(3), 3),
        (Some(1), None, 1),
        (Some(0), Some(3), 0),
    ] {
        let parameters = Parameters {
            min_new_tokens: own,
            max_new_tokens: max,
            default_min_new_tokens: 4,
            default_min_length: 7,
            ..Parameters::default()
        };
        let stop = validate("a b", parameters).await.unwrap().request.stop;
        assert_eq!(stop.min_new_tokens, expected, "{own:?} {max:?}");
    }
    for (own, expected) in [
        (None, vec!["x"]),
        (Some(vec![]), vec![]),
        (Some(vec!["y".into()]), vec!["y"]),
    ] {
        let parameters = Parameters {
            stop: own,
            default_stop: vec!["x".into()],
            ..Parameters::default()
        };
        let stop = validate("a", parameters).await.unwrap().request.stop;
        assert_eq!(stop.strings, expected);
    }
}
