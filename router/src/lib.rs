//! The HTTP front of Gridwork: translates its APIs to the engine's one request and back.
//!
//! [`run`] takes its socket and its shutdown signal from the caller, so that a test runs the real server in a line.

pub mod api;
mod bounds;
pub mod chat_template;
pub mod cli;
pub mod encoder;
pub mod error;
pub mod extract;
pub mod headers;
pub mod logs;
pub mod metrics;
pub mod openapi;
pub mod parameters;
pub mod server;
pub mod sse;
pub mod state;
pub mod supervision;
pub mod telemetry;
mod text_encoder;
mod unread;
pub mod validation;

use std::future::{Future, IntoFuture};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gridwork_engine::{Encoder, Engine, ShardTokenizer, StartError};
use tokenizers::Tokenizer;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::chat_template::{ChatTemplate, ChatTemplateError};
use crate::cli::RouterConfig;
use crate::encoder::EncoderService;
use crate::state::{AppState, Condition};
use crate::supervision::Supervision;
use crate::text_encoder::TextEncoder;
use crate::validation::{ValidationLimits, Validator};

/// Why the router cannot serve; the message is for the user.
#[derive(Debug, thiserror::Error)]
pub enum RouterError {
    #[error("{} has no tokenizer.json; give --tokenizer-path a folder that has one", .0.display())]
    NoTokenizer(PathBuf),
    #[error("{} cannot be read: {cause}; download it again", .path.display())]
    BadTokenizer { path: PathBuf, cause: String },
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("the HTTP server failed: {0}")]
    Http(#[from] std::io::Error),
    #[error("the router failed: {0}")]
    Internal(String),
}

/// Serves on `listener` until `shutdown` resolves, then finishes what runs, for as long as the configuration allows.
pub async fn run(
    listener: TcpListener,
    config: RouterConfig,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), RouterError> {
    let metrics = metrics::install();
    tokio::pin!(shutdown);
    let supervision = Supervision::default();
    if config.supervised {
        supervision.answer_at_stdin().map_err(|error| {
            RouterError::Internal(format!("stdin is no socket of the launcher: {error}"))
        })?;
    }
    let (tokenizer, chat_template) = tokio::select! {
        loaded = load_tokenizer(&config) => loaded?,
        () = &mut shutdown => return Ok(()),
    };
    match &chat_template {
        Ok(_) => {}
        Err(ChatTemplateError::Missing) => {
            tracing::info!("the model has no chat template: /v1/chat/completions will refuse");
        }
        Err(error) => tracing::warn!("chats will be refused: {error}"),
    }
    let engine = Engine::start(config.engine.clone(), tokenizer.clone());
    let encoder = EncoderService::new(
        Encoder::start(config.encoder.clone()),
        tokenizer.clone(),
        &config.model_path,
        config.encoder_limits,
    );
    supervision.include(vec![engine.vitals(), encoder.handle().vitals()]);
    let limits = ValidationLimits {
        max_stop_sequences: config.http.max_stop_sequences,
        max_top_n_tokens: config.http.max_top_n_tokens,
        max_input_tokens: config.http.max_input_tokens,
    };
    let text_encoder = if config.tokenize_on_shard {
        tracing::info!(
            "texts are tokenized by the shard: the tokenizer exists as Python code alone"
        );
        TextEncoder::Shard {
            shard: ShardTokenizer::new(config.engine.shard.clone()),
            texts: tokenizer.clone(),
        }
    } else {
        TextEncoder::Local(tokenizer.clone())
    };
    let validator = Validator::new(text_encoder, limits, config.http.validation_workers);
    let state = AppState::new(
        engine.clone(),
        validator,
        tokenizer,
        config.http.clone(),
        chat_template,
        encoder,
        Condition {
            supervision,
            metrics,
        },
    );
    let served = state.clone();

    let (stop, stopped) = oneshot::channel::<()>();
    let server = axum::serve(listener.tap_nodelay(), server::app(state)).with_graceful_shutdown(
        async move {
            let _ = stopped.await;
        },
    );
    let mut server = tokio::spawn(server.into_future());
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
    let grace = config.graceful_termination_timeout;
    let finished = async {
        tokio::join!(engine.drain(), served.encoder().handle().drain());
        let _ = stop.send(());
        // Connections that are kept alive without a request would hold the server up for nothing.
        let _ = tokio::time::timeout(LAST_BYTES, &mut server).await;
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
        Ok(ready) => Ok(format!(
            "{} tokens of cache, sequences of up to {} tokens",
            ready.limits.capacity_tokens, ready.limits.max_total_tokens
        )),
        Err(StartError::OtherTask { .. }) => {
            let info = state.encoder().handle().ready().await?;
            Ok(format!(
                "{} batches of up to {} tokens, inputs of up to {} tokens",
                info.model_impl,
                state.encoder().limits().max_batch_tokens,
                state.encoder().max_input_tokens(&info)
            ))
        }
        Err(error) => Err(error),
    }
}

/// How long the last bytes of the last answers may take to leave once the engine is idle.
const LAST_BYTES: std::time::Duration = std::time::Duration::from_secs(1);

type LoadedTokenizer = (Arc<Tokenizer>, Result<ChatTemplate, ChatTemplateError>);

/// Reads tokenizer and chat template, off the threads that serve connections.
async fn load_tokenizer(config: &RouterConfig) -> Result<LoadedTokenizer, RouterError> {
    let (folder, tokenizer_config) = (
        config.tokenizer_path.clone(),
        config.tokenizer_config_path.clone(),
    );
    tokio::task::spawn_blocking(move || {
        let tokenizer = read_tokenizer(&folder)?;
        Ok((
            Arc::new(tokenizer),
            ChatTemplate::load(&folder, tokenizer_config.as_deref()),
        ))
    })
    .await
    .map_err(|error| RouterError::Internal(error.to_string()))?
}

fn read_tokenizer(folder: &Path) -> Result<Tokenizer, RouterError> {
    let path = folder.join("tokenizer.json");
    if !path.is_file() {
        return Err(RouterError::NoTokenizer(folder.to_owned()));
    }
    let mut tokenizer = Tokenizer::from_file(&path).map_err(|error| RouterError::BadTokenizer {
        path: path.clone(),
        cause: error.to_string(),
    })?;
    // A saved tokenizer may cut or fill up texts; what fits is decided here, and nothing is padded.
    let _ = tokenizer.with_truncation(None);
    tokenizer.with_padding(None);
    Ok(tokenizer)
}

/// Small writes leave at once: a token must not wait for the next one.
trait NoDelay {
    type Listener;
    fn tap_nodelay(self) -> Self::Listener;
}

impl NoDelay for TcpListener {
    type Listener = axum::serve::TapIo<TcpListener, fn(&mut tokio::net::TcpStream)>;

    fn tap_nodelay(self) -> Self::Listener {
        fn no_delay(stream: &mut tokio::net::TcpStream) {
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!("TCP_NODELAY cannot be set: {error}");
            }
        }
        axum::serve::ListenerExt::tap_io(self, no_delay as fn(&mut tokio::net::TcpStream))
    }
}
