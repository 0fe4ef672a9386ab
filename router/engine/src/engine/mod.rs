//! The engine's handle: admits requests and returns their events. The task behind it runs the steps.

mod config;
mod generation;
mod step_loop;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use tokenizers::Tokenizer;
use tokio::sync::mpsc;

pub use config::{EngineConfig, Limits, Ready};
pub use generation::Generation;

use crate::backlog::{Backlog, Backlogs};
use crate::error::{StartError, SubmitError};
use crate::lifecycle::Lifecycle;
use crate::metrics::EngineMetrics;
use crate::permits::Permit;
use crate::request::GenerationRequest;
use crate::scheduler::Scheduler;
use crate::sequence::Sequence;
use crate::sequence::detokenizer::Vocabulary;
use crate::shard::vitals::Vitals;
use crate::tenant::Tenant;
use step_loop::{Command, StepConnector, StepLoop, scheduler_config};

/// Handle of the engine; cheap to clone.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
    commands: mpsc::UnboundedSender<Command>,
}

/// State that all handles share.
struct Shared {
    lifecycle: Arc<Lifecycle<Ready>>,
    /// Sizes of the events that clients have not read yet.
    backlogs: Arc<Backlogs>,
    max_drafts: usize,
    vocabulary: Arc<Vocabulary>,
    next_key: AtomicU64,
}

impl Engine {
    /// Starts the engine's task on the current runtime. The task connects to the shard, now and after every loss of it.
    pub fn start(config: EngineConfig, tokenizer: Arc<Tokenizer>) -> Self {
        let vocabulary = Arc::new(Vocabulary::new(tokenizer));
        let metrics = EngineMetrics::new();
        let max_drafts = config.speculate as usize;
        let queue_timeout = config.queue_timeout;
        let (commands, received) = mpsc::unbounded_channel();
        let lifecycle = Lifecycle::start(
            config.max_concurrent_requests,
            config.shard_timeout,
            StepConnector {
                config,
                vocabulary: vocabulary.clone(),
                tokens: OnceLock::new(),
            },
            received,
            metrics.clone(),
            {
                let vocabulary = vocabulary.clone();
                move |ready: &Ready| StepLoop {
                    scheduler: Scheduler::new(
                        scheduler_config(ready, queue_timeout),
                        vocabulary,
                        ready.info.eos_token_ids.clone(),
                        metrics.clone(),
                    ),
                    metrics,
                    queue_timeout,
                }
            },
        );
        Engine {
            shared: Arc::new(Shared {
                lifecycle,
                backlogs: Arc::default(),
                max_drafts,
                vocabulary,
                next_key: AtomicU64::new(0),
            }),
            commands,
        }
    }

    /// Waits until the shard is loaded and warmed up.
    pub async fn ready(&self) -> Result<Arc<Ready>, StartError> {
        self.shared.lifecycle.ready().await
    }

    /// Result of [`Engine::ready`], or `None` before that.
    pub fn loaded(&self) -> Option<Arc<Ready>> {
        self.shared.lifecycle.loaded()
    }

    /// True if steps can run now. False while the shard is loading, hangs, or is being restarted.
    pub fn is_healthy(&self) -> bool {
        self.shared.lifecycle.is_healthy()
    }

    /// Health of the engine's task and its shard.
    pub fn vitals(&self) -> Arc<Vitals> {
        self.shared.lifecycle.vitals()
    }

    /// True if [`Engine::drain`] has been called.
    pub fn is_draining(&self) -> bool {
        self.shared.lifecycle.is_draining()
    }

    /// Takes a permit for a request of a tenant before it is built, so that no work is done for a request that cannot be
    /// admitted.
    pub fn reserve(&self, tenant: Option<&Arc<Tenant>>) -> Result<Permit, SubmitError> {
        self.shared.lifecycle.reserve(tenant)
    }

    /// Admits a request to the queue or refuses it at once. The request keeps its permit until its generation has
    /// ended, whether or not its events have been read.
    pub fn submit(&self, mut request: GenerationRequest) -> Result<Generation, SubmitError> {
        let Shared {
            lifecycle,
            backlogs,
            max_drafts,
            vocabulary,
            next_key,
        } = &*self.shared;
        lifecycle.check_admission()?;
        let permit = match request.permit.take() {
            Some(permit) => permit,
            None => lifecycle.take_permit(request.tenant.as_ref())?,
        };
        if let Some(tenant) = &request.tenant {
            tenant.charge(request.token_ids.len());
        }
        let backlog = Backlog::new(backlogs);
        let key = next_key.fetch_add(1, Ordering::Relaxed);
        let (sender, events) = mpsc::unbounded_channel();
        let sequence = Sequence::new(key, request, vocabulary, sender, Instant::now())
            .admitted(permit.twin(), backlog.clone())
            .speculating(*max_drafts);
        self.commands
            .send(Command::Submit(Box::new(sequence)))
            .map_err(|_| SubmitError::Draining)?;
        Ok(Generation {
            key,
            events,
            commands: self.commands.clone(),
            ended: false,
            backlog,
            _permit: permit,
        })
    }

    /// Admits nothing more. Returns when everything admitted has ended.
    pub async fn drain(&self) {
        self.shared.lifecycle.drain().await;
    }
}
