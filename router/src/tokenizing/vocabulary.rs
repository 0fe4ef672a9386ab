//! Refuses tokens that the model has no row for. A tokenizer may know tokens that its model lacks: tokens that were
//! added later, or those of a tokenizer of another size that lies beside the weights.

use gridwork_proto::v1::InfoResponse;
use tokenizers::Tokenizer;

use crate::error::ApiError;

/// Numbers of tokens that the model takes and gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vocabulary {
    /// Number of input tokens: rows of the embedding.
    pub inputs: u32,
    /// Number of output tokens: logits.
    pub outputs: u32,
}

impl From<&InfoResponse> for Vocabulary {
    fn from(info: &InfoResponse) -> Self {
        let outputs = info.vocab_size;
        let inputs = match info.input_vocab_size {
            0 => outputs,
            size => size,
        };
        Vocabulary { inputs, outputs }
    }
}

impl Vocabulary {
    /// Refuses a prompt with a token beyond the embedding. `needs_logits` means that log-probabilities of its tokens
    /// are requested. `text` returns the text of a token, if the tokenizer knows it.
    pub(crate) fn check_prompt(
        self,
        field: &str,
        ids: &[u32],
        needs_logits: bool,
        text: impl Fn(u32) -> Option<String>,
    ) -> Result<(), ApiError> {
        let size = if needs_logits {
            self.inputs.min(self.outputs)
        } else {
            self.inputs
        };
        check(field, ids.iter().copied(), size, text)
    }
}

/// Refuses ids from `size` on, and names their text.
pub(crate) fn check(
    field: &str,
    mut ids: impl Iterator<Item = u32>,
    size: u32,
    text: impl Fn(u32) -> Option<String>,
) -> Result<(), ApiError> {
    let Some(id) = ids.find(|id| *id >= size) else {
        return Ok(());
    };
    let known = text(id).map_or_else(String::new, |text| {
        format!(" (`{text}`), which only the tokenizer knows")
    });
    let last = size.saturating_sub(1);
    Err(ApiError::validation(
        field,
        format!(
            "`{field}` has token {id}{known}, and the model's vocabulary has {size} tokens, with the ids 0 to {last}"
        ),
    ))
}

/// Returns the text of a token in the tokenizer.
pub(crate) fn text_of(tokenizer: &Tokenizer) -> impl Fn(u32) -> Option<String> {
    |id| tokenizer.id_to_token(id)
}

/// Text of `ids`. Refuses ids that the tokenizer does not know, since decoding would skip them; `field` is where they
/// stand.
pub(crate) fn decode(
    tokenizer: &Tokenizer,
    field: &str,
    ids: &[u32],
    skip_special_tokens: bool,
) -> Result<String, ApiError> {
    let unknown = |id: &&u32| tokenizer.id_to_token(**id).is_none();
    if let Some(id) = ids.iter().find(unknown) {
        let message = format!("`{field}` has token {id}, which the tokenizer does not know");
        return Err(ApiError::validation(field, message));
    }
    tokenizer.decode(ids, skip_special_tokens).map_err(|error| {
        ApiError::validation(field, format!("`{field}` cannot be decoded: {error}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOCABULARY: Vocabulary = Vocabulary {
        inputs: 12,
        outputs: 10,
    };

    fn refusal(ids: &[u32], needs_logits: bool, text: Option<&str>) -> Option<String> {
        let known = |_| text.map(str::to_owned);
        let checked = VOCABULARY.check_prompt("inputs", ids, needs_logits, known);
        checked.err().map(|error| error.message)
    }

    #[test]
    fn a_token_without_a_row_is_named_with_its_text() {
        assert_eq!(refusal(&[0, 11], false, None), None);
        let message = refusal(&[3, 12, 13], false, Some("<new>")).unwrap();
        assert_eq!(
            message,
            "`inputs` has token 12 (`<new>`), which only the tokenizer knows, and the model's vocabulary has \
             12 tokens, with the ids 0 to 11"
        );
        let message = refusal(&[99], false, None).unwrap();
        assert!(message.contains("has token 99, and"), "{message}");
    }

    #[test]
    fn log_probabilities_of_a_prompt_need_logits_for_its_tokens() {
        assert_eq!(refusal(&[9], true, None), None);
        assert!(refusal(&[10], true, None).is_some());
    }

    #[test]
    fn an_unknown_embedding_size_defaults_to_the_logits() {
        let info = InfoResponse {
            vocab_size: 7,
            ..InfoResponse::default()
        };
        let (inputs, outputs) = (7, 7);
        assert_eq!(Vocabulary::from(&info), Vocabulary { inputs, outputs });
    }

    #[test]
    fn only_known_tokens_are_decoded() {
        let json = serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null,
            "post_processor": null, "decoder": {"type": "Fuse"},
            "added_tokens": [{"id": 0, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
                              "normalized": false, "special": true}],
            "model": {"type": "WordLevel", "unk_token": "<s>", "vocab": {"<s>": 0, "a": 1, "b": 2}}
        });
        let tokenizer: Tokenizer = json.to_string().parse().unwrap();
        assert_eq!(
            decode(&tokenizer, "ids", &[0, 1, 2], false).unwrap(),
            "<s>ab"
        );
        assert_eq!(decode(&tokenizer, "ids", &[0, 1, 2], true).unwrap(), "ab");
        let error = decode(&tokenizer, "ids", &[1, 77], true).unwrap_err();
        assert_eq!(error.field.as_deref(), Some("ids"));
        assert!(error.message.contains("token 77"), "{error}");
    }
}
