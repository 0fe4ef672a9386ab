//! Validates the prompts of a request and submits its choices to the engine.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use futures::future::try_join_all;

use super::choice::{Echo, RunningChoice};
use super::chunk::Identity;
use super::returned_tokens::ReturnedTokens;
use super::text_offsets;
use crate::connections::intake;
use crate::error::ApiError;
use crate::generation::parameters::{FieldNames, Parameters, Prompt};
use crate::generation::validation::{Valid, check_min_new_tokens};
use crate::http::accounting::RequestAccounting;
use crate::observability::telemetry::record_seed;
use crate::running_requests::also_known_as;
use crate::state::AppState;
use crate::tokenizing::token_text::TokenTexts;

/// Choices to generate for a request, with the names of its fields for errors.
#[derive(Debug)]
pub struct GenerationJob {
    pub prompts: Vec<Prompt>,
    pub parameters: Parameters,
    pub names: FieldNames,
    /// Choices for each prompt.
    pub num_choices: u32,
    /// Default maximum number of generated tokens. The context's end may come before it.
    pub default_limit: Option<u32>,
    /// Begin the texts with their prompts.
    pub echo: bool,
    /// Show only the prompts, and nothing that is generated.
    pub echo_only: bool,
    /// Show the ids of all tokens.
    pub return_token_ids: bool,
}

/// Text of a prompt, and whether special tokens are written before it; `None` for tokens.
type PromptText = Option<(String, bool)>;

impl GenerationJob {
    /// Validates all prompts and submits all choices; when one is refused, none is left running. The choices are
    /// sorted by index, with those of the first prompt first. Counts the prompts in `accounting`.
    pub async fn submit(
        mut self,
        state: &AppState,
        accounting: &mut RequestAccounting,
    ) -> Result<Vec<RunningChoice>, ApiError> {
        if self.parameters.top_p == Some(0.0) {
            // The most likely token alone has at least a probability of 0.
            self.parameters.do_sample = Some(false);
            self.parameters.top_p = None;
        }
        let span = accounting.span.clone();
        span.record("parameters", format!("{:?}", self.parameters));
        accounting.prompt_chars = self.prompts.iter().map(Prompt::num_chars).sum();
        let texts = self.echoed_texts();
        let validations = self.prompts.into_iter().map(|prompt| {
            state.validate(prompt, self.parameters.clone(), &self.names, span.clone())
        });
        let valid = try_join_all(validations).await?;
        if self.echo {
            let bytes: usize = valid
                .iter()
                .zip(&texts)
                .map(|(valid, text)| echo_bytes(valid, text.as_ref(), &self.parameters))
                .sum();
            let bytes = bytes.saturating_mul(self.num_choices as usize);
            check_echo(bytes, state.settings().limits.max_echo_bytes)?;
        } else if self.parameters.prompt_logprobs {
            let tokens: usize = valid.iter().map(|valid| valid.prompt_ids().len()).sum();
            let of_token = 1 + self.parameters.prompt_top_n as usize;
            let bytes = [of_token, BYTES_PER_LOGPROB, self.num_choices as usize]
                .into_iter()
                .fold(tokens, usize::saturating_mul);
            check_prompt_logprobs(bytes, state.settings().limits.max_echo_bytes)?;
        }
        intake::release_current();
        let mut choices = Vec::with_capacity(valid.len() * self.num_choices as usize);
        for (prompt, (mut valid, text)) in valid.into_iter().zip(texts).enumerate() {
            if let Some(limit) = self.default_limit {
                let request = &mut valid.request;
                request.max_new_tokens = request.max_new_tokens.min(limit);
                let min = &mut request.stop.min_new_tokens;
                if self.parameters.min_new_tokens.is_none() {
                    // It is the model's default.
                    *min = (*min).min(request.max_new_tokens);
                }
                check_min_new_tokens(*min, request.max_new_tokens as usize, &self.names)?;
            }
            accounting.prompt_tokens += valid.prompt_ids().len();
            accounting.validation = accounting.validation.max(valid.validation_time);
            if let Some(seed) = valid.seed {
                record_seed(&span, seed);
            }
            let echo = match self.echo {
                true => Some(Arc::new(
                    echo(state, text, valid.prompt_ids(), &self.parameters).await?,
                )),
                false => None,
            };
            let prompt_ids: Option<Arc<[u32]>> = self
                .parameters
                .prompt_logprobs
                .then(|| valid.prompt_ids().into());
            let returned = self
                .return_token_ids
                .then(|| ReturnedTokens::new(valid.prompt_ids().into()));
            for copy in valid.repeat(self.num_choices as usize) {
                let index = choices.len() as u32;
                let events = state.engine().submit(copy.request)?;
                let echo = echo.clone();
                let mut choice = RunningChoice::new(index, prompt, events, echo, self.echo_only);
                choice.prompt_ids = prompt_ids.clone();
                choice.returned = returned.clone();
                choices.push(choice);
            }
        }
        Ok(choices)
    }

    /// Text that an echo shows, for each prompt.
    fn echoed_texts(&self) -> Vec<PromptText> {
        let text = |prompt: &Prompt| match prompt {
            Prompt::Text {
                text,
                add_special_tokens,
            } if self.echo => Some((text.clone(), *add_special_tokens)),
            Prompt::Text { .. } | Prompt::Tokens(_) => None,
        };
        self.prompts.iter().map(text).collect()
    }
}

/// Estimated number of bytes of a prompt that one choice repeats.
fn echo_bytes(valid: &Valid, text: Option<&(String, bool)>, parameters: &Parameters) -> usize {
    let num_tokens = valid.prompt_ids().len();
    // The tokens' own texts are not known yet.
    let text_bytes = text.map_or(num_tokens * BYTES_PER_TOKEN, |(text, _)| text.len());
    let logprobs = if parameters.prompt_logprobs {
        num_tokens * BYTES_PER_LOGPROB
    } else {
        0
    };
    text_bytes + logprobs
}

/// Estimated size of a token's text.
const BYTES_PER_TOKEN: usize = 4;
/// Estimated size of a prompt token's entry in the log-probabilities of an answer.
const BYTES_PER_LOGPROB: usize = 64;

fn check_prompt_logprobs(bytes: usize, limit: usize) -> Result<(), ApiError> {
    if bytes <= limit {
        return Ok(());
    }
    Err(ApiError::validation(
        "prompt_logprobs",
        format!(
            "`prompt_logprobs` would take some {bytes} bytes over all choices (`n`), and one answer may repeat {limit} of \
             the prompt (--max-echo-bytes)"
        ),
    ))
}

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

/// The echo of a prompt. `given`: the prompt's text; without it the tokens are decoded.
async fn echo(
    state: &AppState,
    given: PromptText,
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
                // The tokenizer changed the text, so that only it knows the offsets.
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
    /// Identity of a new answer. `prefix` of its id: `chatcmpl` or `cmpl`.
    pub fn new(prefix: &str, state: &AppState) -> Self {
        let id = format!("{prefix}-{}", uuid::Uuid::new_v4().simple());
        also_known_as(&id);
        Self {
            id,
            created: unix_time_s(),
            model: state.served_name().to_owned(),
            system_fingerprint: concat!("gridwork-", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }
}

/// Current time, in seconds since 1970.
pub fn unix_time_s() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_log_probabilities_of_prompts_name_the_flag() {
        assert!(check_prompt_logprobs(100, 100).is_ok());
        let error = check_prompt_logprobs(101, 100).expect_err("too much");
        assert_eq!(error.field.as_deref(), Some("prompt_logprobs"));
        assert!(error.message.contains("--max-echo-bytes"), "{error}");
    }

    #[test]
    fn an_echo_beyond_its_limit_names_the_flag() {
        assert!(check_echo(100, 100).is_ok());
        let error = check_echo(101, 100).expect_err("too much");
        assert_eq!(error.field.as_deref(), Some("echo"));
        assert!(error.message.contains("--max-echo-bytes"), "{error}");
    }
}
