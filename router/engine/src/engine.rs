//! The engine's handle and the task behind it, which owns the scheduler and the connection to the shard.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::Stream;
use gridwork_proto::v1::{InfoResponse, Task as ServedTask, WarmupRequest, WarmupResponse};
use tokenizers::Tokenizer;
use tokio::sync::{Notify, mpsc, watch};

use crate::detokenizer::Vocabulary;
use crate::lengths::LengthRule;
use crate::metrics::EngineMetrics;
use crate::request::{Event, GenerationError, GenerationRequest, SubmitError};
use crate::scheduler::{Scheduler, SchedulerConfig};
use crate::sequence::{Sequence, SequenceKey};
use crate::shard_client::{self, ReadyShard, ShardAddress};

/// How to start an [`Engine`].
#[derive(Debug, Clone)]
pub struct EngineConfig {
    pub shard: ShardAddress,
    /// Tokens in a cache block.
    pub block_size_tokens: u32,
    /// Token budget of a step: prefill gets what decodes leave of it.
    pub max_batch_tokens: u32,
    /// Most sequences that run at once.
    pub max_sequences: u32,
    /// Longest sequence, prompt and generated; `None`: what the model's context allows.
    pub max_total_tokens: Option<u32>,
    /// Cap on the cached tokens that running sequences may use; `None`: the whole cache.
    pub max_batch_total_tokens: Option<u32>,
    /// Requests that may be queued or running; the next one is refused.
    pub max_concurrent_requests: usize,
    pub queue_timeout: Duration,
    /// Whether sequences share the cached keys and values of what is the same in them.
    pub prefix_cache: bool,
    /// Most drafts of a sequence in a step; 0: no speculation.
    pub speculate: u32,
    /// How long the shard may take to become ready, at the start and after a restart.
    pub shard_timeout: Duration,
}

/// What the shard said and what follows from it; known once the engine is ready.
#[derive(Debug, Clone)]
pub struct Ready {
    pub info: InfoResponse,
    pub limits: Limits,
}

#[derive(Debug, Clone)]
pub struct Limits {
    pub block_size_tokens: u32,
    pub num_blocks: u32,
    /// Tokens that fit into the cache.
    pub capacity_tokens: u64,
    pub kv_cache_bytes: u64,
    /// Longest sequence, prompt and generated.
    pub max_total_tokens: u32,
    pub max_batch_tokens: u32,
    pub max_sequences: u32,
    pub max_concurrent_requests: usize,
    /// Whether there is a prefix cache: it was asked for, and the model runs on a path that can share blocks.
    pub prefix_cache: bool,
    /// Most drafts of a sequence in a step.
    pub speculate: u32,
    /// Up to how many tokens of a step drafts are computed.
    pub draft_step_tokens: u32,
}

/// Why the engine cannot serve; the message is for the user.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StartError {
    #[error("the shard was not ready after {seconds} s; last state: {state}")]
    Timeout { seconds: u64, state: String },
    #[error("{0}")]
    Shard(String),
    #[error("the connection to the shard broke: {0}")]
    Lost(String),
    #[error(
        "the shard speaks version {shard} of the contract, this router version {router}; install matching versions"
    )]
    Version { shard: u32, router: u32 },
    #[error("the shard serves another task: {}", .task.as_str_name())]
    OtherTask { task: ServedTask },
    #[error(
        "--max-total-tokens {max_total_tokens} is more than the model's context of {context_tokens} tokens; set it to {context_tokens} or less"
    )]
    ContextTooShort {
        max_total_tokens: u32,
        context_tokens: u32,
    },
    #[error(
        "the KV cache holds {capacity_tokens} tokens, too few for one sequence of {max_total_tokens} tokens; set --max-total-tokens to {capacity_tokens} or less, or give the cache more memory with --kv-cache-memory"
    )]
    CacheTooSmall {
        capacity_tokens: u64,
        max_total_tokens: u32,
    },
    #[error(
        "--speculate {speculate} needs a model on the paged path, and this one runs on the {model_impl} path{}; remove --speculate", because(.reason)
    )]
    NoDrafts {
        speculate: u32,
        model_impl: String,
        reason: String,
    },
    #[error(
        "--speculate {speculate} goes with models that generate, and this one is served for another task ({}); remove --speculate", .task.as_str_name()
    )]
    NothingToDraft { speculate: u32, task: ServedTask },
}

fn because(reason: &str) -> String {
    if reason.is_empty() {
        String::new()
    } else {
        format!(" ({reason})")
    }
}

/// Handle of the engine; cheap to clone.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
    commands: mpsc::UnboundedSender<Command>,
    state: watch::Receiver<State>,
}

/// What handles, streams and the task share.
struct Shared {
    max_concurrent_requests: usize,
    most_drafts: usize,
    vocabulary: Arc<Vocabulary>,
    /// Admitted and not yet ended.
    num_requests: AtomicUsize,
    next_key: AtomicU64,
    draining: AtomicBool,
    healthy: AtomicBool,
    /// Notified when `num_requests` reaches zero.
    idle: Notify,
}

#[derive(Clone)]
enum State {
    Loading,
    Ready(Arc<Ready>),
    Failed(StartError),
}

enum Command {
    Submit(Box<Sequence>),
    Abort(SequenceKey),
}

impl Engine {
    /// Starts the engine's task on the current runtime. It connects to the shard, now and after every loss of it.
    pub fn start(config: EngineConfig, tokenizer: Arc<Tokenizer>) -> Self {
        let shared = Arc::new(Shared {
            max_concurrent_requests: config.max_concurrent_requests,
            most_drafts: config.speculate as usize,
            vocabulary: Arc::new(Vocabulary::new(tokenizer)),
            num_requests: AtomicUsize::new(0),
            next_key: AtomicU64::new(0),
            draining: AtomicBool::new(false),
            healthy: AtomicBool::new(false),
            idle: Notify::new(),
        });
        let (commands, incoming) = mpsc::unbounded_channel();
        let (state, watched) = watch::channel(State::Loading);
        let task = Task {
            config,
            shared: shared.clone(),
            metrics: EngineMetrics::new(),
            state,
        };
        tokio::spawn(task.run(incoming));
        Engine {
            shared,
            commands,
            state: watched,
        }
    }

    /// Waits until the shard is loaded and warmed up.
    pub async fn ready(&self) -> Result<Arc<Ready>, StartError> {
        let mut state = self.state.clone();
        let state = state
            .wait_for(|state| !matches!(state, State::Loading))
            .await;
        match state.as_deref() {
            Ok(State::Ready(ready)) => Ok(ready.clone()),
            Ok(State::Failed(error)) => Err(error.clone()),
            Ok(State::Loading) | Err(_) => Err(StartError::Shard("the engine has stopped".into())),
        }
    }

    /// What [`Engine::ready`] returned, or `None` before that.
    pub fn loaded(&self) -> Option<Arc<Ready>> {
        match &*self.state.borrow() {
            State::Ready(ready) => Some(ready.clone()),
            _ => None,
        }
    }

    /// Whether steps can run now: false while the shard is loading or being restarted.
    pub fn is_healthy(&self) -> bool {
        self.shared.healthy.load(Ordering::Relaxed)
    }

    /// Whether [`Engine::drain`] has been called.
    pub fn is_draining(&self) -> bool {
        self.shared.draining.load(Ordering::SeqCst)
    }

    /// Admits a request to the queue, or says at once why not.
    pub fn submit(&self, request: GenerationRequest) -> Result<Generation, SubmitError> {
        if self.shared.draining.load(Ordering::SeqCst) {
            return Err(SubmitError::Draining);
        }
        if self.loaded().is_none() {
            return Err(SubmitError::NotReady);
        }
        let permit = Permit::take(&self.shared)?;
        let key = self.shared.next_key.fetch_add(1, Ordering::Relaxed);
        let (sender, events) = mpsc::unbounded_channel();
        let sequence = Sequence::new(
            key,
            request,
            &self.shared.vocabulary,
            sender,
            Instant::now(),
        )
        .speculating(self.shared.most_drafts);
        if self
            .commands
            .send(Command::Submit(Box::new(sequence)))
            .is_err()
        {
            return Err(SubmitError::Draining);
        }
        Ok(Generation {
            key,
            events,
            commands: self.commands.clone(),
            ended: false,
            _permit: permit,
        })
    }

    /// Admits nothing more and returns when everything admitted has ended.
    pub async fn drain(&self) {
        self.shared.draining.store(true, Ordering::SeqCst);
        loop {
            let idle = self.shared.idle.notified();
            if self.shared.num_requests.load(Ordering::SeqCst) == 0 {
                return;
            }
            idle.await;
        }
    }
}

/// Place of one request among `max_concurrent_requests`.
struct Permit(Arc<Shared>);

impl Permit {
    fn take(shared: &Arc<Shared>) -> Result<Self, SubmitError> {
        let limit = shared.max_concurrent_requests;
        shared
            .num_requests
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |running| {
                (running < limit).then_some(running + 1)
            })
            .map(|_| Permit(shared.clone()))
            .map_err(|_| SubmitError::Overloaded {
                limit,
                retry_after_s: 1,
            })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.0.num_requests.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}

/// Stream of one request's events. Dropping it aborts the request and frees its blocks.
pub struct Generation {
    key: SequenceKey,
    events: mpsc::UnboundedReceiver<Result<Event, GenerationError>>,
    commands: mpsc::UnboundedSender<Command>,
    ended: bool,
    _permit: Permit,
}

impl Stream for Generation {
    type Item = Result<Event, GenerationError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let event = match self.events.poll_recv(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(event) => event.unwrap_or(Err(GenerationError::Shutdown)),
        };
        self.ended = match &event {
            Ok(Event::Token(token)) => token.finish.is_some(),
            Ok(Event::PromptLogprobs(_)) => false,
            Err(_) => true,
        };
        Poll::Ready(Some(event))
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.commands.send(Command::Abort(self.key));
        }
    }
}

/// The task: connects, runs steps until the shard is lost, and again.
struct Task {
    config: EngineConfig,
    shared: Arc<Shared>,
    metrics: EngineMetrics,
    state: watch::Sender<State>,
}

/// Pause before the shard is looked for again after it was found wanting.
const RECONNECT_PAUSE: Duration = Duration::from_millis(200);

/// How often waiting requests are checked for their time limit.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(1);

/// Why the steps have ended.
enum Ended {
    /// No handle is left.
    NoHandles,
    ShardLost(String),
}

impl Task {
    async fn run(self, mut incoming: mpsc::UnboundedReceiver<Command>) {
        let (mut shard, ready) = match self.connect().await {
            Ok(connected) => connected,
            Err(error) => {
                let _ = self.state.send(State::Failed(error));
                return;
            }
        };
        let mut scheduler = Scheduler::new(
            self.scheduler_config(&ready),
            self.shared.vocabulary.clone(),
            ready.info.eos_token_ids.clone(),
            self.metrics.clone(),
        );
        let _ = self.state.send(State::Ready(Arc::new(ready)));
        loop {
            self.shared.healthy.store(true, Ordering::Relaxed);
            let ended = self
                .run_steps(&mut scheduler, &mut shard, &mut incoming)
                .await;
            self.shared.healthy.store(false, Ordering::Relaxed);
            drop(shard);
            let reason = match ended {
                Ended::NoHandles => return,
                Ended::ShardLost(reason) => reason,
            };
            self.metrics.shard_restarts.increment(1);
            tracing::warn!(
                "the shard is gone ({reason}); {} requests go on when it is back",
                scheduler.num_sequences()
            );
            scheduler.shard_lost(true);
            let Some((again, ready)) = self.reconnect(&mut scheduler, &mut incoming).await else {
                return;
            };
            scheduler.reset_shard(self.scheduler_config(&ready));
            tracing::info!(
                "the shard is back; {} requests go on",
                scheduler.num_sequences()
            );
            let _ = self.state.send(State::Ready(Arc::new(ready)));
            shard = again;
        }
    }

    /// Sends steps and takes results for as long as the shard answers.
    async fn run_steps(
        &self,
        scheduler: &mut Scheduler,
        shard: &mut ReadyShard,
        incoming: &mut mpsc::UnboundedReceiver<Command>,
    ) -> Ended {
        let mut expiry = tokio::time::interval(EXPIRY_INTERVAL);
        expiry.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            // Commands first, all of them, so that requests that arrive together are computed together.
            while let Ok(command) = incoming.try_recv() {
                self.execute(scheduler, command);
            }
            while let Some(step) = scheduler.schedule(Instant::now()) {
                if shard.steps.send(step).await.is_err() {
                    return Ended::ShardLost("it takes no more steps".into());
                }
            }
            tokio::select! {
                command = incoming.recv() => match command {
                    Some(command) => self.execute(scheduler, command),
                    None => return Ended::NoHandles,
                },
                result = shard.results.message() => match result {
                    Ok(Some(result)) => {
                        if let Err(violation) = scheduler.apply(&result, Instant::now()) {
                            tracing::error!("the shard broke the contract: {violation}");
                            return Ended::ShardLost(violation);
                        }
                    }
                    Ok(None) => return Ended::ShardLost("it ended the stream".into()),
                    Err(status) => return Ended::ShardLost(status.message().to_owned()),
                },
                _ = expiry.tick() => scheduler.expire(Instant::now()),
            }
        }
    }

    fn execute(&self, scheduler: &mut Scheduler, command: Command) {
        match command {
            Command::Submit(sequence) => {
                self.metrics
                    .prompt_tokens
                    .increment(sequence.num_prompt_tokens as u64);
                scheduler.add(*sequence);
            }
            Command::Abort(key) => scheduler.abort(key),
        }
    }

    /// Waits for a restarted shard, while requests come and go. `None`: no handle is left.
    async fn reconnect(
        &self,
        scheduler: &mut Scheduler,
        incoming: &mut mpsc::UnboundedReceiver<Command>,
    ) -> Option<(ReadyShard, Ready)> {
        let mut expiry = tokio::time::interval(EXPIRY_INTERVAL);
        loop {
            let connecting = self.connect();
            tokio::pin!(connecting);
            let error = loop {
                tokio::select! {
                    connected = &mut connecting => match connected {
                        Ok(connected) => return Some(connected),
                        Err(error) => break error,
                    },
                    command = incoming.recv() => self.execute(scheduler, command?),
                    _ = expiry.tick() => scheduler.expire(Instant::now()),
                }
            };
            tracing::error!("the shard cannot go on: {error}");
            if !matches!(error, StartError::Lost(_)) {
                scheduler.fail_all(&GenerationError::Shard(error.to_string()));
            }
            tokio::time::sleep(RECONNECT_PAUSE).await;
        }
    }

    async fn connect(&self) -> Result<(ReadyShard, Ready), StartError> {
        let config = &self.config;
        let shard = shard_client::connect(&config.shard, config.shard_timeout, |info| {
            Ok(WarmupRequest {
                block_size_tokens: config.block_size_tokens,
                // Decodes are never left out of a step, so that it may exceed its budget by them.
                max_batch_tokens: config.max_batch_tokens + config.max_sequences,
                max_sequences: config.max_sequences,
                max_total_tokens: longest_sequence(config, info)?,
                prefix_cache: has_prefix_cache(config, info),
                max_drafts: max_drafts(config, info)?,
            })
        })
        .await?;
        let limits = limits(config, &shard.info, &shard.warmup)?;
        let info = shard.info.clone();
        Ok((shard, Ready { info, limits }))
    }

    fn scheduler_config(&self, Ready { info, limits }: &Ready) -> SchedulerConfig {
        SchedulerConfig {
            block_size_tokens: limits.block_size_tokens as usize,
            num_blocks: limits.num_blocks,
            max_batch_tokens: limits.max_batch_tokens as usize,
            max_sequences: limits.max_sequences,
            prefix_cache: limits.prefix_cache,
            draft_step_tokens: limits.draft_step_tokens as usize,
            queue_timeout: self.config.queue_timeout,
            lengths: LengthRule::of(info),
        }
    }
}

/// Longest sequence that configuration and model allow; 0 when neither sets a limit.
fn longest_sequence(config: &EngineConfig, info: &InfoResponse) -> Result<u32, StartError> {
    match (config.max_total_tokens, info.max_context_tokens) {
        (Some(max_total_tokens), context_tokens)
            if context_tokens > 0 && max_total_tokens > context_tokens =>
        {
            Err(StartError::ContextTooShort {
                max_total_tokens,
                context_tokens,
            })
        }
        (Some(max_total_tokens), _) => Ok(max_total_tokens),
        (None, context_tokens) => Ok(context_tokens),
    }
}

fn limits(
    config: &EngineConfig,
    info: &InfoResponse,
    warmup: &WarmupResponse,
) -> Result<Limits, StartError> {
    let block_size_tokens = config.block_size_tokens;
    let num_blocks = config
        .max_batch_total_tokens
        .map_or(warmup.num_blocks, |tokens| {
            warmup.num_blocks.min(tokens.div_ceil(block_size_tokens))
        });
    let capacity_tokens = u64::from(num_blocks) * u64::from(block_size_tokens);
    let max_total_tokens = match longest_sequence(config, info)? {
        0 => u32::try_from(capacity_tokens).unwrap_or(u32::MAX),
        limit => limit,
    };
    if capacity_tokens < u64::from(max_total_tokens) || capacity_tokens == 0 {
        return Err(StartError::CacheTooSmall {
            capacity_tokens,
            max_total_tokens,
        });
    }
    Ok(Limits {
        block_size_tokens,
        num_blocks,
        capacity_tokens,
        kv_cache_bytes: warmup.kv_cache_bytes,
        max_total_tokens,
        max_batch_tokens: config.max_batch_tokens,
        max_sequences: config.max_sequences,
        max_concurrent_requests: config.max_concurrent_requests,
        prefix_cache: has_prefix_cache(config, info),
        speculate: config.speculate,
        draft_step_tokens: if config.speculate > 0 {
            info.draft_step_tokens
        } else {
            0
        },
    })
}

/// Drafts that the shard is to be ready for.
fn max_drafts(config: &EngineConfig, info: &InfoResponse) -> Result<u32, StartError> {
    if config.speculate > 0 && info.draft_step_tokens == 0 {
        return Err(StartError::NoDrafts {
            speculate: config.speculate,
            model_impl: info.model_impl.clone(),
            reason: info.model_impl_reason.clone(),
        });
    }
    Ok(config.speculate)
}

fn has_prefix_cache(config: &EngineConfig, info: &InfoResponse) -> bool {
    config.prefix_cache && info.shares_blocks
}
