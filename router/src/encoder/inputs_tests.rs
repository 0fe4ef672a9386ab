//! Tests of the sequences that inputs become.

use std::collections::HashMap;

use tokenizers::models::wordlevel::WordLevel;
use tokenizers::pre_tokenizers::whitespace::Whitespace;
use tokenizers::processors::template::TemplateProcessing;

use super::*;

/// Words are digits; 10 begins a sequence and 11 ends one.
fn tokenizer() -> Tokenizer {
    let vocabulary = (0..10)
        .map(|id| (id.to_string(), id))
        .chain([("[CLS]", 10), ("[SEP]", 11), ("new", 12)].map(|(word, id)| (word.to_owned(), id)))
        .collect::<HashMap<_, _>>();
    let model = WordLevel::builder()
        .vocab(vocabulary.into_iter().collect())
        .unk_token("0".to_owned())
        .build()
        .expect("a model");
    let template = TemplateProcessing::builder()
        .try_single("[CLS] $A [SEP]")
        .expect("a template")
        .try_pair("[CLS] $A [SEP] $B:1 [SEP]:1")
        .expect("a template")
        .special_tokens(vec![("[CLS]", 10), ("[SEP]", 11)])
        .build()
        .expect("a processor");
    let mut tokenizer = Tokenizer::new(model);
    tokenizer.with_pre_tokenizer(Some(Whitespace {}));
    tokenizer.with_post_processor(Some(template));
    tokenizer
}

fn preparation(max_tokens: usize, direction: Option<TruncationDirection>) -> Preparation {
    Preparation {
        field: "inputs",
        max_inputs: 32,
        truncation: Truncation {
            enabled: direction.is_some(),
            direction: direction.unwrap_or_default(),
        },
        prompt: None,
        max_tokens,
        vocab_size: 12,
    }
}

/// The sequence that an input becomes.
fn prepared(preparation: &Preparation, input: Input) -> EncodeSequence {
    preparation
        .prepare(&tokenizer(), input, Normalization::default())
        .expect("a sequence")
}

fn pair(first: &str, second: &str) -> Input {
    Input::Pair(first.into(), second.into())
}

#[test]
fn texts_and_pairs_get_special_tokens_and_types() {
    let preparation = preparation(20, None);
    let one = prepared(&preparation, Input::Text("1 2".into()));
    assert_eq!(one.token_ids, [10, 1, 2, 11]);
    assert!(one.token_type_ids.is_empty());
    let two = prepared(&preparation, pair("1 2", "3"));
    assert_eq!(two.token_ids, [10, 1, 2, 11, 3, 11]);
    assert_eq!(two.token_type_ids, [0, 0, 0, 0, 1, 1]);
}

#[test]
fn cutting_keeps_the_special_tokens() {
    for (direction, expected) in [
        (TruncationDirection::Right, [10, 1, 2, 11]),
        (TruncationDirection::Left, [10, 3, 4, 11]),
    ] {
        let got = prepared(
            &preparation(4, Some(direction)),
            Input::Text("1 2 3 4".into()),
        );
        assert_eq!(got.token_ids, expected);
    }
    let got = prepared(
        &preparation(7, Some(TruncationDirection::Right)),
        pair("1 2 3 4 5 6", "7 8"),
    );
    assert_eq!(got.token_ids, [10, 1, 2, 11, 7, 8, 11]);
    assert_eq!(got.token_type_ids, [0, 0, 0, 0, 1, 1, 1]);
}

#[test]
fn token_ids_are_used_as_they_are() {
    let got = prepared(&preparation(3, None), Input::Tokens(vec![1, 2, 3]));
    assert_eq!(got.token_ids, [1, 2, 3]);
    let cut = prepared(
        &preparation(2, Some(TruncationDirection::Left)),
        Input::Tokens(vec![1, 2, 3]),
    );
    assert_eq!(cut.token_ids, [2, 3]);
}

#[test]
fn a_prompt_is_put_before_the_text() {
    let preparation = Preparation {
        prompt: Some("9 ".into()),
        ..preparation(20, None)
    };
    let got = prepared(&preparation, Input::Text("1".into()));
    assert_eq!(got.token_ids, [10, 9, 1, 11]);
}

#[test]
fn a_token_that_the_model_lacks_is_refused_unless_it_is_cut_off() {
    for input in [Input::Text("1 new".into()), pair("1", "new")] {
        let error = preparation(20, None)
            .prepare(&tokenizer(), input, Normalization::default())
            .expect_err("a refusal");
        assert_eq!(error.kind, ErrorKind::Validation);
        assert!(
            error
                .message
                .contains("token 12 (`new`), which only the tokenizer knows"),
            "{error}"
        );
    }
    let cut = prepared(
        &preparation(3, Some(TruncationDirection::Right)),
        Input::Text("1 new".into()),
    );
    assert_eq!(cut.token_ids, [10, 1, 11]);
}

#[test]
fn empty_long_and_unknown_inputs_are_refused_with_the_reason() {
    for (input, kind, words) in [
        (Input::Text(String::new()), ErrorKind::Empty, "empty"),
        (Input::Tokens(vec![]), ErrorKind::Empty, "empty"),
        (pair("", ""), ErrorKind::Empty, "empty"),
        (
            Input::Text("1 2 3".into()),
            ErrorKind::TooLong,
            "at most 4 tokens. Given: 5",
        ),
        (Input::Tokens(vec![12]), ErrorKind::Validation, "token 12"),
    ] {
        let error = preparation(4, None)
            .prepare(&tokenizer(), input.clone(), Normalization::default())
            .expect_err("a refusal");
        assert_eq!(error.kind, kind, "{input:?}");
        assert!(error.message.contains(words), "{error}");
    }
}

#[test]
fn texts_are_normalized_as_by_sentence_transformers() {
    let normalization = |strips, lower_cases| Normalization {
        strips,
        lower_cases,
    };
    let text = " \u{1f}Größe ΟΔΟΣ\n";
    assert_eq!(Normalization::default().apply(text), text);
    assert_eq!(normalization(true, false).apply(text), "Größe ΟΔΟΣ");
    assert_eq!(
        normalization(false, true).apply(text),
        " \u{1f}größe οδος\n"
    );
    assert_eq!(normalization(true, true).apply("  "), "");
}

#[test]
fn the_special_token_after_a_prompt_is_not_counted() {
    let mut preparation = preparation(20, None);
    let length = |preparation: &Preparation| {
        preparation.prompt_length(&tokenizer(), Normalization::default())
    };
    assert_eq!(length(&preparation), 0);
    preparation.prompt = Some("1 2 ".into());
    assert_eq!(length(&preparation), 3);
}
