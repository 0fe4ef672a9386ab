//! Log-probabilities of a prompt's tokens, in vLLM's form.

use std::collections::BTreeMap;

use gridwork_engine::PromptLogprob;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::error::ApiError;
use crate::tokenizing::token_text::TokenTexts;

/// Log-probability that OpenAI reports for impossible tokens: JSON has no infinity.
const IMPOSSIBLE: f32 = -9999.0;

/// Entries of all positions. The first one is `null`, because nothing stands before it.
pub type PromptLogprobs = Vec<Option<BTreeMap<String, PromptTokenLogprob>>>;

/// Log-probability of a token at a position of the prompt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PromptTokenLogprob {
    /// Natural logarithm of the probability in the model's own distribution; -9999 for impossible tokens.
    pub logprob: f32,
    /// Place among the most likely tokens, from 1; `null` for the prompt's own token when it is not among them.
    pub rank: Option<usize>,
    /// Text of the token.
    pub decoded_token: String,
}

/// Refuses what cannot be reported. `most`: maximum number of tokens at a position.
pub fn check(requested: Option<u32>, most: u32, stream: bool) -> Result<(), ApiError> {
    let message = match requested {
        Some(_) if stream => "`prompt_logprobs` are not available when `stream` is true".to_owned(),
        Some(number) if number > most => format!(
            "`prompt_logprobs` must be >= 0 and <= {most} (--max-top-n-tokens). Given: {number}"
        ),
        _ => return Ok(()),
    };
    Err(ApiError::validation("prompt_logprobs", message))
}

/// The entries of a prompt of the tokens `ids`: of each token, and of the most likely ones at its position.
pub fn entries(texts: TokenTexts<'_>, ids: &[u32], known: &[PromptLogprob]) -> PromptLogprobs {
    let entry = |logprob: f32, rank: Option<usize>, id: u32| PromptTokenLogprob {
        logprob: finite(Some(logprob)),
        rank,
        decoded_token: texts.text_and_bytes(id).0,
    };
    let position = |(&id, known): (&u32, &PromptLogprob)| {
        let own = known.logprob?;
        let ranked = (1..).zip(&known.top);
        let mut all: BTreeMap<String, PromptTokenLogprob> = ranked
            .map(|(rank, top)| (top.id.to_string(), entry(top.logprob, Some(rank), top.id)))
            .collect();
        all.entry(id.to_string())
            .or_insert_with(|| entry(own, None, id));
        Some(all)
    };
    ids.iter().zip(known).map(position).collect()
}

/// The log-probability, or what stands for an impossible token's.
pub fn finite(logprob: Option<f32>) -> f32 {
    logprob
        .filter(|logprob| logprob.is_finite())
        .unwrap_or(IMPOSSIBLE)
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use gridwork_engine::TopToken;
    use serde_json::json;
    use tokenizers::Tokenizer;

    use super::*;

    #[test]
    fn entries_have_the_token_itself_and_the_most_likely_ones() {
        let tokenizer = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null,
            "post_processor": null, "decoder": null, "added_tokens": [],
            "model": {"type": "WordLevel", "unk_token": "a", "vocab": {"a": 0, "b": 1, "c": 2}}
        });
        let tokenizer = Tokenizer::from_str(&tokenizer.to_string()).expect("a tokenizer");
        let top = |id, logprob| TopToken { id, logprob };
        let known = [
            PromptLogprob::default(),
            PromptLogprob {
                logprob: Some(-2.0),
                top: vec![top(2, -0.5), top(1, -2.0)],
            },
            PromptLogprob {
                logprob: Some(f32::NEG_INFINITY),
                top: vec![top(2, -0.5)],
            },
        ];
        let entries = entries(TokenTexts::new(&tokenizer), &[0, 1, 0], &known);
        assert_eq!(
            serde_json::to_value(entries).expect("JSON"),
            json!([
                null,
                {"1": {"logprob": -2.0, "rank": 2, "decoded_token": "b"},
                 "2": {"logprob": -0.5, "rank": 1, "decoded_token": "c"}},
                {"0": {"logprob": -9999.0, "rank": null, "decoded_token": "a"},
                 "2": {"logprob": -0.5, "rank": 1, "decoded_token": "c"}},
            ])
        );
    }

    #[test]
    fn streams_and_too_many_tokens_are_refused() {
        assert!(check(Some(5), 5, false).is_ok());
        assert!(check(None, 5, true).is_ok());
        for (number, stream) in [(6, false), (0, true)] {
            let error = check(Some(number), 5, stream).expect_err("a refusal");
            assert_eq!(error.field.as_deref(), Some("prompt_logprobs"));
        }
    }
}
