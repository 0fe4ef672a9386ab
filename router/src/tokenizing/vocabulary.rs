//! Refuses tokens that the model does not know. A tokenizer may know more tokens than its model: some were added to it,
//! or a tokenizer of another size was put beside the weights.

use gridwork_proto::v1::InfoResponse;
use tokenizers::Tokenizer;

use crate::error::ApiError;

/// Number of tokens that the model knows, as inputs and as outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vocabulary {
    /// Number of tokens that the model can read: rows of its embedding.
    pub inputs: u32,
    /// Number of tokens that the model can generate: logits.
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
    /// Refuses a prompt with a token that the model cannot read. `needs_logits`: its tokens need log-probabilities too.
    /// `text` gives a token's text, if the tokenizer knows it.
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

/// Refuses ids from `size` on. The error has the token's text, if `text` knows it.
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

/// Function that gives a token's text in `tokenizer`.
pub(crate) fn text_of(tokenizer: &Tokenizer) -> impl Fn(u32) -> Option<String> {
    |id| tokenizer.id_to_token(id)
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
    fn unknown_tokens_are_refused_with_text_and_vocabulary_size() {
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
    fn the_embedding_has_as_many_rows_as_logits_by_default() {
        let info = InfoResponse {
            vocab_size: 7,
            ..InfoResponse::default()
        };
        let (inputs, outputs) = (7, 7);
        assert_eq!(Vocabulary::from(&info), Vocabulary { inputs, outputs });
    }
}
