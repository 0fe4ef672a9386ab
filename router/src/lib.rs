//! The HTTP front of Gridwork: translates its APIs to the engine's one request and back.
//!
//! [`run`] takes its socket and its shutdown signal from the caller, so that a test runs the real server in a line.

mod api;
mod api_keys;
mod chat_template;
pub mod config;
pub mod connections;
pub mod docs;
mod encoder;
mod encryption;
mod error;
mod generation;
mod grammar;
mod http;
pub mod observability;
mod openapi;
mod running_requests;
mod server;
mod state;
mod stored_responses;
mod supervision;
mod tokenizing;
mod tool_calls;

pub use grammar::texts as grammar_texts;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use gridwork_edge::tls::TlsError;
use gridwork_engine::{Encoder, Engine, EngineConfig, Ready, ShardTokenizer, StartError};
use tokenizers::Tokenizer;
use tokio::sync::oneshot;

use crate::chat_template::{ChatTemplate, ChatTemplateError};
use crate::config::RouterConfig;
use crate::connections::intake::Intake;
use crate::connections::{Front, Listener};
use crate::encoder::{EncoderFiles, EncoderService, Sources};
use crate::generation::bounds::ValidationLimits;
use crate::generation::validation::Validator;
use crate::generation::watermark;
use crate::grammar::compile::Grammars;
use crate::running_requests::RunningRequests;
use crate::state::{AppState, Condition, Parts};
use crate::stored_responses::StoredResponses;
use crate::supervision::Supervision;
use crate::tokenizing::text_encoder::TextEncoder;
use crate::tokenizing::tokenizer_file::TokenizerFileError;
use crate::tokenizing::tokenizer_regex::SlowRegexes;
use crate::tokenizing::workers::Workers;
use crate::tool_calls::{ChatFormat, Choice};

/// Maximum number of connections of monitors.
const MONITOR_CONNECTIONS: usize = 64;

/// Reasons why the router cannot serve; the message is for the user.
#[derive(Debug, thiserror::Error)]
pub enum RouterError {
    #[error(transparent)]
    Tokenizer(#[from] TokenizerFileError),
    #[error(
        "{}: the regular expression `{pattern}` of {place} takes exponentially many steps for some texts, so that one request could keep a thread busy for ever; take a model with another tokenizer", .path.display()
    )]
    ExponentialRegex {
        path: PathBuf,
        pattern: String,
        place: String,
    },
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("{0}")]
    Prompt(String),
    #[error("the HTTP server failed: {0}")]
    Http(#[from] std::io::Error),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("the router failed: {0}")]
    Internal(String),
}

/// The sockets of a server.
pub struct Listeners {
    pub clients: Listener,
    /// Port for monitors alone; `None`: there is none.
    pub monitors: Option<Listener>,
}

impl From<Listener> for Listeners {
    fn from(clients: Listener) -> Self {
        Listeners {
            clients,
            monitors: None,
        }
    }
}

/// Serves on `listeners` until `shutdown` resolves, then finishes what runs, for as long as the configuration allows.
pub async fn run(
    listeners: impl Into<Listeners>,
    config: RouterConfig,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), RouterError> {
    let page = observability::metrics::install();
    tokio::pin!(shutdown);
    let Listeners { clients, monitors } = listeners.into();
    let clients = match config.tls_files() {
        None => {
            observability::metrics::certificate_end().set(0.0);
            clients
        }
        Some(files) => encryption::encrypted(clients, files)?,
    };
    let supervision = Supervision::default();
    let settings = config.settings();
    let launch = &settings.launch;
    if launch.supervised {
        supervision.answer_at_stdin().map_err(|error| {
            RouterError::Internal(format!("stdin is no socket of the launcher: {error}"))
        })?;
    }
    let Loaded {
        tokenizer,
        slow_regexes,
        chat_template,
        chat_format,
    } = tokio::select! {
        loaded = load_tokenizer(&config) => loaded?,
        () = &mut shutdown => return Ok(()),
    };
    match &chat_template {
        Ok(_) => {
            let format = &chat_format.format;
            tracing::info!("format of tool calls: {}", format.describe_calls());
            tracing::info!("format of reasoning: {}", format.describe_reasoning());
        }
        Err(ChatTemplateError::Missing) => {
            tracing::info!("the model has no chat template: /v1/chat/completions will refuse");
        }
        Err(error) => tracing::warn!("chats will be refused: {error}"),
    }
    let workers = Workers::new(settings.limits.validation_workers);
    let tokenizer_path = launch.tokenizer_path.as_ref().unwrap_or(&launch.model_path);
    let more_eos = tokenizing::tokenizer_file::eos_token_id(tokenizer_path, &tokenizer);
    let engine_config = EngineConfig {
        more_eos_token_ids: more_eos.into_iter().collect(),
        ..config.engine.clone()
    };
    let engine = Engine::start(engine_config, tokenizer.clone());
    let sources = Sources {
        model: &launch.model_path,
        tokenizer: tokenizer_path,
        default_prompt: config.default_prompt.as_ref(),
    };
    let files = EncoderFiles::read(sources, &tokenizer).map_err(RouterError::Prompt)?;
    let encoder = EncoderService {
        encoder: Encoder::start(config.encoder.clone()),
        tokenizer: tokenizer.clone(),
        slow_regexes: slow_regexes.clone(),
        files,
        limits: config.encoder_limits,
        workers: workers.clone(),
    };
    supervision.include(vec![engine.vitals(), encoder.encoder.vitals()]);
    let limits = ValidationLimits {
        max_stop_sequences: settings.limits.max_stop_sequences,
        max_top_n_tokens: settings.limits.max_top_n_tokens,
        max_input_tokens: settings.limits.max_input_tokens,
        watermark: watermark::Settings {
            share: settings.limits.watermark_gamma,
            bias: settings.limits.watermark_delta,
            key: watermark::USUAL_KEY,
        },
    };
    let text_encoder = if launch.tokenize_on_shard {
        tracing::info!(
            "texts are tokenized by the shard: the tokenizer exists as Python code alone"
        );
        TextEncoder::Shard {
            shard: ShardTokenizer::new(config.engine.shard.clone()),
            texts: tokenizer.clone(),
        }
    } else {
        TextEncoder::local(tokenizer.clone(), slow_regexes.clone())
    };
    let validator = Validator::new(text_encoder, limits, workers.clone());
    let state = AppState::new(Parts {
        engine: engine.clone(),
        validator,
        grammars: Grammars::new(settings.limits.validation_workers),
        workers,
        tokenizer,
        config: config.http.clone(),
        chat_template,
        chat_format,
        encoder,
        stored_responses: StoredResponses::new(
            settings.http.response_store_bytes,
            config.http.api_keys.number(),
        ),
        running_requests: RunningRequests::default(),
        condition: Condition {
            supervision,
            metrics: page,
        },
    });
    let served = state.clone();

    tokio::spawn(config.http.api_keys.clone().follow_file());
    if let Some(monitors) = monitors {
        let front = Front {
            app: server::monitoring(state.clone()),
            dialect_of: api::routes::dialect_of,
            limits: connections::Limits {
                max_connections: MONITOR_CONNECTIONS,
                ..config.connections
            },
            intake: Intake::new(0),
            gauge: metrics::Gauge::noop(),
        };
        // It answers until the process ends: also while running requests are finished.
        tokio::spawn(connections::serve(monitors, front, std::future::pending()));
    }
    let (stop, stopped) = oneshot::channel::<()>();
    let front = Front {
        app: server::app(state),
        dialect_of: api::routes::dialect_of,
        limits: config.connections,
        intake: Intake::new(settings.http.payload_limit),
        gauge: observability::metrics::connections(),
    };
    let mut server = tokio::spawn(connections::serve(clients, front, async move {
        let _ = stopped.await;
    }));
    let ended = |ended: Result<std::io::Result<()>, tokio::task::JoinError>| {
        ended
            .map_err(|error| RouterError::Internal(error.to_string()))?
            .map_err(RouterError::Http)
    };

    tokio::select! {
        ready = until_ready(&served) => tracing::info!("ready: {}", ready?),
        () = &mut shutdown => return Ok(()),
        result = &mut server => return ended(result),
    }
    tokio::select! {
        () = &mut shutdown => {}
        result = &mut server => return ended(result),
    }

    tracing::info!("shutting down: no more requests are admitted, running ones are finished");
    let grace = Duration::from_secs(settings.http.graceful_termination_timeout);
    let finished = async {
        tokio::join!(engine.drain(), served.encoder().encoder.drain());
        let _ = stop.send(());
        // The last bytes of the last answers: a client that reads slowly gets them too.
        let _ = (&mut server).await;
    };
    if tokio::time::timeout(grace, finished).await.is_err() {
        tracing::warn!(
            "requests still ran after {} s; they are cut off",
            grace.as_secs()
        );
    }
    Ok(())
}

/// Waits until the model is loaded, whatever it is served for; what then to tell the user.
async fn until_ready(state: &AppState) -> Result<String, StartError> {
    match state.engine().ready().await {
        Ok(ready) => {
            prepare_grammars(state, ready.clone());
            Ok(format!(
                "{} tokens of cache, sequences of up to {} tokens",
                ready.limits.capacity_tokens, ready.limits.max_total_tokens
            ))
        }
        Err(StartError::OtherTask { .. }) => {
            let info = state.encoder().encoder.ready().await?;
            Ok(format!(
                "{} batches of up to {} tokens, inputs of up to {} tokens",
                info.model_impl,
                state.encoder().limits.max_batch_tokens,
                state.encoder().max_input_tokens(&info)
            ))
        }
        Err(error) => Err(error),
    }
}

/// Arranges the model's tokens for grammars, beside the first requests.
fn prepare_grammars(state: &AppState, ready: Arc<Ready>) {
    let grammars = state.grammars().clone();
    tokio::task::spawn_blocking(move || grammars.prepare(&ready));
}

/// Contents of the files of a tokenizer.
struct Loaded {
    tokenizer: Arc<Tokenizer>,
    slow_regexes: SlowRegexes,
    chat_template: Result<ChatTemplate, ChatTemplateError>,
    chat_format: ChatFormat,
}

/// Reads tokenizer and chat template, off the threads that serve connections.
async fn load_tokenizer(config: &RouterConfig) -> Result<Loaded, RouterError> {
    let settings = config.settings();
    let launch = &settings.launch;
    let folder = launch
        .tokenizer_path
        .as_ref()
        .unwrap_or(&launch.model_path)
        .clone();
    let names = settings.names.clone();
    tokio::task::spawn_blocking(move || {
        let tokenizer = tokenizing::tokenizer_file::read(&folder)?;
        let slow_regexes = read_slow_regexes(&folder)?;
        let chat_template = ChatTemplate::load(&folder, names.tokenizer_config_path.as_deref());
        let choice = Choice {
            calls: Some(&names.tool_call_parser),
            reasoning: Some(&names.reasoning_parser),
        };
        let chat_format = ChatFormat::find(chat_template.as_ref().ok(), &tokenizer, choice);
        Ok(Loaded {
            tokenizer: Arc::new(tokenizer),
            slow_regexes,
            chat_template,
            chat_format,
        })
    })
    .await
    .map_err(|error| RouterError::Internal(error.to_string()))?
}

fn read_slow_regexes(folder: &Path) -> Result<SlowRegexes, RouterError> {
    let path = folder.join("tokenizer.json");
    SlowRegexes::read(&path).map_err(|found| RouterError::ExponentialRegex {
        path,
        pattern: found.pattern,
        place: found.place,
    })
}
