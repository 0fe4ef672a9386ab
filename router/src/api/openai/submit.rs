//! From validated prompts to running choices.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use futures::future::try_join_all;
use tracing::Span;

use super::choice::{Choice, Echo};
use super::chunk::Identity;
use super::text_offsets;
use super::token_text::TokenTexts;
use crate::connections::intake;
use crate::error::ApiError;
use crate::generation::parameters::{FieldNames, Parameters, Prompt};
use crate::generation::validation::Valid;
use crate::http::headers::Account;
use crate::state::AppState;

/// What to generate, and how to call things when something is wrong with it.
#[derive(Debug)]
pub struct Order {
    pub prompts: Vec<OrderedPrompt>,
    pub parameters: Parameters,
    pub names: FieldNames,
    /// Texts for each prompt.
    pub num_choices: u32,
    /// Bound of generated tokens that gives way to the context's end, for when the client has set none.
    pub default_limit: Option<u32>,
    /// Begin the texts with their prompts.
    pub echo: bool,
    /// And show nothing else.
    pub echo_only: bool,
}

/// A prompt, and the text that an echo shows for it.
#[derive(Debug)]
pub struct OrderedPrompt {
    pub prompt: Prompt,
    /// And whether special tokens are written before it; `None`: what its tokens stand for.
    pub text: Option<(String, bool)>,
}

impl OrderedPrompt {
    /// Characters of a text; 0 for tokens.
    fn num_chars(&self) -> usize {
        match &self.prompt {
            Prompt::Text { text, .. } => text.chars().count(),
            Prompt::Tokens(_) => 0,
        }
    }
}

impl Order {
    /// Validates all prompts and submits all choices; when one is refused, none is left running. The choices come in
    /// the order of their indices: those of the first prompt first. `account` gets what is known of the prompts.
    pub async fn submit(
        self,
        state: &AppState,
        span: &Span,
        account: &mut Account,
    ) -> Result<Vec<Choice>, ApiError> {
        span.record("parameters", format!("{:?}", self.parameters));
        account.prompt_chars = self.prompts.iter().map(OrderedPrompt::num_chars).sum();
        let texts: Vec<_> = self
            .prompts
            .iter()
            .map(|prompt| prompt.text.clone())
            .collect();
        let validations = self.prompts.into_iter().map(|prompt| {
            state.validate(
                prompt.prompt,
                self.parameters.clone(),
                &self.names,
                span.clone(),
            )
        });
        let mut valid = try_join_all(validations).await?;
        if self.echo {
            let of_prompts = valid.iter().zip(&texts);
            let bytes: usize = of_prompts
                .map(|(valid, text)| {
                    let text = text.as_ref().map(|(text, _)| text.as_str());
                    echo_bytes(valid, text, &self.parameters)
                })
                .sum();
            let bytes = bytes.saturating_mul(self.num_choices as usize);
            check_echo(bytes, state.settings().limits.max_echo_bytes)?;
        }
        intake::release_current();
        let mut choices = Vec::with_capacity(valid.len() * self.num_choices as usize);
        for (prompt, (valid, text)) in valid.iter_mut().zip(texts).enumerate() {
            if let Some(limit) = self.default_limit {
                valid.request.max_new_tokens = valid.request.max_new_tokens.min(limit);
            }
            account.prompt_tokens += valid.prompt_tokens;
            account.validation = account.validation.max(valid.validation_time);
            if let Some(seed) = valid.seed {
                span.record("seed", seed);
            }
            let echo = match self.echo {
                true => Some(Arc::new(
                    echo(state, text, &valid.prompt_ids, &self.parameters).await?,
                )),
                false => None,
            };
            for copy in valid.repeat(self.num_choices as usize) {
                let index = choices.len() as u32;
                let events = state.engine().submit(copy.request)?;
                let echo = echo.clone();
                choices.push(Choice::new(index, prompt, events, echo, self.echo_only));
            }
        }
        Ok(choices)
    }
}

/// About how many bytes of a prompt one choice repeats.
fn echo_bytes(valid: &Valid, text: Option<&str>, parameters: &Parameters) -> usize {
    let num_tokens = valid.prompt_ids.len();
    // The tokens' own texts are not known yet.
    let text_bytes = text.map_or(num_tokens * BYTES_PER_TOKEN, str::len);
    let logprobs = if parameters.prompt_logprobs {
        num_tokens * BYTES_PER_LOGPROB
    } else {
        0
    };
    text_bytes + logprobs
}

/// Of a token's text.
const BYTES_PER_TOKEN: usize = 4;
/// Of what an answer says of a token of the prompt, when its log-probability is asked for.
const BYTES_PER_LOGPROB: usize = 64;

fn check_echo(bytes: usize, limit: usize) -> Result<(), ApiError> {
    if bytes <= limit {
        return Ok(());
    }
    Err(ApiError::validation(
        "echo",
        format!(
            "`echo` would repeat some {bytes} bytes of the prompt over all choices (`n`), and one answer may repeat \
             {limit} (--max-echo-bytes)"
        ),
    ))
}

/// `given`: the prompt when it was a text; else what its tokens stand for is shown.
async fn echo(
    state: &AppState,
    given: Option<(String, bool)>,
    ids: &[u32],
    parameters: &Parameters,
) -> Result<Echo, ApiError> {
    let texts = TokenTexts::new(state.tokenizer());
    let wants_offsets = parameters.prompt_logprobs;
    let (text, offsets) = match given {
        Some((text, _)) if !wants_offsets => (text, Vec::new()),
        Some((text, add_special_tokens)) => {
            let offsets = match text_offsets::of_text(texts, ids, &text) {
                Some(offsets) => offsets,
                // The tokens' bytes are not the text's: only the tokenizer knows what came of what.
                None => {
                    let again = state
                        .validator()
                        .encode(text.clone(), add_special_tokens, "prompt")
                        .await?;
                    text_offsets::of_bytes(&text, again.offsets.iter().map(|(start, _)| *start))
                }
            };
            (text, offsets)
        }
        None => {
            let text = state.tokenizer().decode(ids, false).map_err(|error| {
                ApiError::validation("prompt", format!("`prompt` cannot be decoded: {error}"))
            })?;
            let offsets = match wants_offsets {
                true => text_offsets::of_decoded(texts, ids, &text),
                false => Vec::new(),
            };
            (text, offsets)
        }
    };
    Ok(Echo {
        text,
        ids: ids.to_vec(),
        offsets,
    })
}

impl Identity {
    /// A new one. `prefix`: `chatcmpl` or `cmpl`.
    pub fn new(prefix: &str, state: &AppState) -> Self {
        Self {
            id: format!("{prefix}-{}", uuid::Uuid::new_v4().simple()),
            created: unix_time_s(),
            model: state.served_name().to_owned(),
            system_fingerprint: concat!("gridwork-", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }
}

/// Seconds since 1970.
pub fn unix_time_s() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_echo_may_repeat_has_a_limit_that_names_its_flag() {
        assert!(check_echo(100, 100).is_ok());
        let error = check_echo(101, 100).expect_err("too much");
        assert_eq!(error.field.as_deref(), Some("echo"));
        assert!(error.message.contains("--max-echo-bytes"), "{error}");
    }
}
