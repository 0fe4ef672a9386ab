//! What every handler can reach.

use std::sync::Arc;

use gridwork_engine::{Engine, Ready};
use tokenizers::Tokenizer;
use tracing::Span;

use crate::chat_template::{ChatTemplate, ChatTemplateError};
use crate::encoder::EncoderService;
use crate::error::{ApiError, ErrorKind};
use crate::parameters::{FieldNames, Parameters, Prompt};
use crate::supervision::Supervision;
use crate::validation::{Valid, Validator};

/// The router's own settings, as handlers need them.
#[derive(Debug, Clone)]
pub struct Config {
    /// As the user called the model; the id in OpenAI's answers.
    pub model_id: String,
    pub revision: Option<String>,
    pub max_best_of: usize,
    pub max_stop_sequences: usize,
    pub max_top_n_tokens: u32,
    pub max_input_tokens: Option<u32>,
    pub max_client_batch_size: usize,
    pub max_concurrent_requests: usize,
    pub validation_workers: usize,
    pub payload_limit_bytes: usize,
    pub api_key: Option<String>,
    pub cors_allow_origin: Vec<String>,
    /// `x-compute-type` header.
    pub compute_type: String,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct AppState(Arc<Inner>);

struct Inner {
    engine: Engine,
    validator: Validator,
    tokenizer: Arc<Tokenizer>,
    config: Config,
    chat_template: Result<ChatTemplate, ChatTemplateError>,
    encoder: EncoderService,
    condition: Condition,
}

/// What is known of how the server is.
pub struct Condition {
    /// Of the shards.
    pub supervision: Supervision,
    pub metrics: metrics_exporter_prometheus::PrometheusHandle,
}

impl AppState {
    pub fn new(
        engine: Engine,
        validator: Validator,
        tokenizer: Arc<Tokenizer>,
        config: Config,
        chat_template: Result<ChatTemplate, ChatTemplateError>,
        encoder: EncoderService,
        condition: Condition,
    ) -> Self {
        AppState(Arc::new(Inner {
            engine,
            validator,
            tokenizer,
            config,
            chat_template,
            encoder,
            condition,
        }))
    }

    pub fn engine(&self) -> &Engine {
        &self.0.engine
    }

    /// What serves encoders; there also when the model generates.
    pub fn encoder(&self) -> &EncoderService {
        &self.0.encoder
    }

    /// What is known of the shards.
    pub fn supervision(&self) -> &Supervision {
        &self.0.condition.supervision
    }

    pub fn validator(&self) -> &Validator {
        &self.0.validator
    }

    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.0.tokenizer
    }

    pub fn config(&self) -> &Config {
        &self.0.config
    }

    pub fn chat_template(&self) -> Result<&ChatTemplate, &ChatTemplateError> {
        self.0.chat_template.as_ref()
    }

    /// The metrics in Prometheus' text format.
    pub fn render_metrics(&self) -> String {
        self.0.condition.metrics.render()
    }

    /// What is served, or the refusal that it is still loading.
    pub fn ready(&self) -> Result<Arc<Ready>, ApiError> {
        self.0.engine.loaded().ok_or_else(|| ApiError {
            retry_after_s: Some(5),
            ..ApiError::new(ErrorKind::Unavailable, "the model is still loading")
        })
    }

    /// A request may leave the model out, or name the served one.
    pub fn check_model(&self, model: Option<&str>) -> Result<(), ApiError> {
        let served = self.config().model_id.as_str();
        match model {
            None | Some("" | "tgi") => Ok(()),
            Some(name) if name == served => Ok(()),
            Some(name) => Err(ApiError::unknown_model("model", name, served)),
        }
    }

    /// Validates a request against what is served.
    pub async fn validate(
        &self,
        prompt: Prompt,
        parameters: Parameters,
        names: &FieldNames,
        span: Span,
    ) -> Result<Valid, ApiError> {
        let ready = self.ready()?;
        self.0
            .validator
            .validate(
                prompt,
                parameters,
                names,
                &ready.limits,
                ready.info.vocab_size,
                span,
            )
            .await
    }
}
