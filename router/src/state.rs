//! Shared state of all handlers: the engine, the validator, and the router's settings.

use std::sync::Arc;

use gridwork_engine::{Engine, Ready, prompt_message};
use gridwork_settings::RouterSettings;
use tokenizers::Tokenizer;
use tracing::Span;

use crate::api_keys;
use crate::chat_template::{ChatTemplate, ChatTemplateError};
use crate::config::Config;
use crate::encoder::EncoderService;
use crate::error::{ApiError, ErrorKind};
use crate::generation::defaults::{self as generation_defaults, Defaults};
use crate::generation::parameters::{FieldNames, Parameters, Prompt};
use crate::generation::validation::{Valid, Validator};
use crate::grammar::compile::Grammars;
use crate::observability::vllm_names::{self, CacheBlocks};
use crate::observability::{metrics, request_log};
use crate::running_requests::RunningRequests;
use crate::stored_responses::StoredResponses;
use crate::supervision::Supervision;
use crate::tokenizing::vocabulary::Vocabulary;
use crate::tokenizing::workers::Workers;
use crate::tool_calls::ChatFormat;

/// Cheap to clone.
#[derive(Clone)]
pub struct AppState(Arc<Parts>);

/// Parts of the state.
pub struct Parts {
    pub engine: Engine,
    pub validator: Validator,
    pub grammars: Grammars,
    pub workers: Workers,
    pub tokenizer: Arc<Tokenizer>,
    pub config: Config,
    pub chat_template: Result<ChatTemplate, ChatTemplateError>,
    /// How the model writes calls and reasoning.
    pub chat_format: ChatFormat,
    /// Service of encoders. It exists also when the model generates.
    pub encoder: EncoderService,
    pub stored_responses: StoredResponses,
    pub running_requests: RunningRequests,
    pub condition: Condition,
}

/// Health of the server, and its metrics.
pub struct Condition {
    /// Health of the shards.
    pub supervision: Supervision,
    pub metrics: metrics_exporter_prometheus::PrometheusHandle,
}

impl AppState {
    pub fn new(parts: Parts) -> Self {
        AppState(Arc::new(parts))
    }

    pub fn engine(&self) -> &Engine {
        &self.0.engine
    }

    /// Service of encoders. It exists also when the model generates.
    pub fn encoder(&self) -> &EncoderService {
        &self.0.encoder
    }

    /// Responses that clients may read and continue.
    pub fn stored_responses(&self) -> &StoredResponses {
        &self.0.stored_responses
    }

    /// Requests that are being answered.
    pub fn running_requests(&self) -> &RunningRequests {
        &self.0.running_requests
    }

    /// Health of the shards.
    pub fn supervision(&self) -> &Supervision {
        &self.0.condition.supervision
    }

    pub fn validator(&self) -> &Validator {
        &self.0.validator
    }

    /// Compiler of grammars.
    pub fn grammars(&self) -> &Grammars {
        &self.0.grammars
    }

    /// Worker threads that parse, render and tokenize.
    pub fn workers(&self) -> &Workers {
        &self.0.workers
    }

    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.0.tokenizer
    }

    pub fn config(&self) -> &Config {
        &self.0.config
    }

    /// The flags, as the user gave them.
    pub fn settings(&self) -> &RouterSettings {
        &self.0.config.settings
    }

    pub fn chat_template(&self) -> Result<&ChatTemplate, &ChatTemplateError> {
        self.0.chat_template.as_ref()
    }

    /// How the model writes calls and reasoning.
    pub fn chat_format(&self) -> &ChatFormat {
        &self.0.chat_format
    }

    /// The metrics in Prometheus' text format.
    pub fn render_metrics(&self) -> String {
        metrics::shard_ready().set(if self.computes() { 1.0 } else { 0.0 });
        let mut page = self.0.condition.metrics.render();
        let loaded = self.engine().loaded();
        let cache = loaded.map(|ready| CacheBlocks {
            block_size_tokens: ready.limits.block_size_tokens,
            num_blocks: ready.limits.num_blocks,
        });
        vllm_names::append(&mut page, self.served_name(), cache);
        page
    }

    /// True if the shard computes now: it is loaded, and nobody knows of a fault.
    pub fn computes(&self) -> bool {
        let is_healthy = self.engine().is_healthy() || self.encoder().encoder.is_healthy();
        is_healthy && self.supervision().trouble().is_none()
    }

    /// The loaded model, or an error while it is still loading.
    pub fn ready(&self) -> Result<Arc<Ready>, ApiError> {
        self.0.engine.loaded().ok_or_else(|| ApiError {
            retry_after_s: Some(5),
            ..ApiError::new(ErrorKind::Unavailable, "the model is still loading")
        })
    }

    /// Maximum number of tokens of a prompt.
    pub fn max_input_tokens(&self) -> Result<usize, ApiError> {
        let ready = self.ready()?;
        Ok(self.0.validator.max_input_tokens(&ready.limits))
    }

    /// Name of the model that answers carry.
    pub fn served_name(&self) -> &str {
        let config = self.config();
        config
            .served_names
            .first()
            .unwrap_or(&config.settings.launch.model_id)
    }

    /// Validates a request against the loaded model, and reserves a place for it in the engine.
    pub async fn validate(
        &self,
        prompt: Prompt,
        mut parameters: Parameters,
        names: &FieldNames,
        span: Span,
    ) -> Result<Valid, ApiError> {
        // It ends with this function.
        let validation = tracing::info_span!(
            parent: &span,
            "validation",
            gen_ai.input.messages = tracing::field::Empty,
        );
        let records_content = self.settings().output.otlp_record_content && !span.is_disabled();
        if records_content && let Prompt::Text { text, .. } = &prompt {
            validation.record("gen_ai.input.messages", prompt_message(text));
        }
        let ready = self.ready()?;
        if parameters.takes_model_defaults {
            Defaults::of(&ready.info).fill(&mut parameters);
        }
        // An overloaded server refuses before any work is done.
        let tenant = api_keys::current_tenant();
        let permit = self.0.engine.reserve(tenant.as_ref())?;
        let grammar = parameters.grammar.take();
        if let Some(grammar) = &grammar
            && self.settings().limits.disable_grammar_support
        {
            return Err(grammar_disabled(grammar.field()));
        }
        let mut valid = self
            .0
            .validator
            .validate(
                prompt,
                parameters,
                names,
                &ready.limits,
                Vocabulary::from(&ready.info),
                span,
            )
            .await?;
        if let Some(grammar) = grammar {
            valid.request.grammar = Some(self.0.grammars.compile(grammar, &ready).await?);
        }
        generation_defaults::add_token_rules(&ready.info, &mut valid.request);
        valid.request.permit = permit.into();
        if self.config().isolate_cache_by_key {
            valid.request.namespace.tenant = tenant.as_ref().map(|tenant| tenant.id());
        }
        valid.request.tenant = tenant;
        valid.request.records_content = records_content;
        if let Some((id, _)) = request_log::current_ids() {
            valid.request.request_id = id;
        }
        Ok(valid)
    }
}

fn grammar_disabled(field: &str) -> ApiError {
    let message = format!("`{field}` is not allowed on this server (--disable-grammar-support)");
    ApiError::validation(field, message)
}
