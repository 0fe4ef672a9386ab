//! The engine's handle and the task behind it, which owns the scheduler and the connection to the shard.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::Stream;
use gridwork_proto::v1::{InfoResponse, Task as ServedTask, WarmupRequest, WarmupResponse};
use tokenizers::Tokenizer;
use tokio::sync::{mpsc, watch};

use crate::backlog::{Backlog, Backlogs};
use crate::metrics::EngineMetrics;
use crate::places::{Place, Places};
use crate::request::{Event, GenerationError, GenerationRequest, SubmitError};
use crate::scheduler::{Scheduler, SchedulerConfig};
use crate::sequence::detokenizer::Vocabulary;
use crate::sequence::lengths::LengthRule;
use crate::sequence::{Sequence, SequenceKey};
use crate::shard::client::{self, ReadyShard, ShardAddress};
use crate::shard::vitals::Vitals;
use crate::shard::watchdog::{LOOK_EVERY, Watchdog, Work};

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
    pub startup_timeout: Duration,
    /// Limit of a step that nothing is known of; see [`crate::shard::watchdog`].
    pub shard_timeout: Duration,
    /// Tokens that end a sequence, besides those that the shard names.
    pub more_eos_token_ids: Vec<u32>,
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
    #[error("the shard has not answered its warm-up for {seconds} s")]
    Silent { seconds: u64 },
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
    /// Of requests that are admitted and have not ended.
    places: Arc<Places>,
    /// What clients have not taken yet.
    backlogs: Arc<Backlogs>,
    most_drafts: usize,
    vocabulary: Arc<Vocabulary>,
    next_key: AtomicU64,
    draining: AtomicBool,
    healthy: AtomicBool,
    vitals: Arc<Vitals>,
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
            places: Places::new(config.max_concurrent_requests),
            backlogs: Arc::default(),
            most_drafts: config.speculate as usize,
            vocabulary: Arc::new(Vocabulary::new(tokenizer)),
            next_key: AtomicU64::new(0),
            draining: AtomicBool::new(false),
            healthy: AtomicBool::new(false),
            vitals: Arc::default(),
        });
        let (commands, incoming) = mpsc::unbounded_channel();
        let (state, watched) = watch::channel(State::Loading);
        let task = Task {
            config,
            shared: shared.clone(),
            metrics: EngineMetrics::new(),
            state,
        };
        let vitals = shared.vitals.clone();
        tokio::spawn(async move {
            task.run(incoming).await;
            vitals.ended();
        });
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

    /// Whether steps can run now: false while the shard is loading, hangs or is being restarted.
    pub fn is_healthy(&self) -> bool {
        self.shared.healthy.load(Ordering::Relaxed) && self.shared.vitals.hang().is_none()
    }

    /// How the engine's task is.
    pub fn vitals(&self) -> Arc<Vitals> {
        self.shared.vitals.clone()
    }

    /// Whether [`Engine::drain`] has been called.
    pub fn is_draining(&self) -> bool {
        self.shared.draining.load(Ordering::SeqCst)
    }

    /// Takes a place for a request that is still to be made, so that work on it is not done in vain.
    pub fn reserve(&self) -> Result<Place, SubmitError> {
        if self.is_draining() || self.shared.vitals.given_up().is_some() {
            return Err(SubmitError::Draining);
        }
        self.shared.places.take()
    }

    /// Admits a request to the queue, or says at once why not. It keeps its place until its generation has ended,
    /// whether or not its events have been taken.
    pub fn submit(&self, mut request: GenerationRequest) -> Result<Generation, SubmitError> {
        if self.shared.draining.load(Ordering::SeqCst) || self.shared.vitals.given_up().is_some() {
            return Err(SubmitError::Draining);
        }
        if self.loaded().is_none() {
            return Err(SubmitError::NotReady);
        }
        let place = match request.place.take() {
            Some(place) => place,
            None => self.shared.places.take()?,
        };
        let backlog = Backlog::new(&self.shared.backlogs);
        let key = self.shared.next_key.fetch_add(1, Ordering::Relaxed);
        let (sender, events) = mpsc::unbounded_channel();
        let sequence = Sequence::new(
            key,
            request,
            &self.shared.vocabulary,
            sender,
            Instant::now(),
        )
        .admitted(place.twin(), backlog.clone())
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
            backlog,
            _place: place,
        })
    }

    /// Admits nothing more and returns when everything admitted has ended.
    pub async fn drain(&self) {
        self.shared.draining.store(true, Ordering::SeqCst);
        self.shared.places.all_free().await;
    }
}

/// Stream of one request's events. Dropping it aborts the request and frees its blocks.
pub struct Generation {
    key: SequenceKey,
    events: mpsc::UnboundedReceiver<Result<Event, GenerationError>>,
    commands: mpsc::UnboundedSender<Command>,
    ended: bool,
    backlog: Backlog,
    /// Free again at once when the client goes away.
    _place: Place,
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
        if let Ok(event) = &event {
            self.backlog.remove(event);
        }
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

/// Why the steps have ended.
enum Ended {
    /// No handle is left.
    NoHandles,
    ShardLost(String),
}

impl Task {
    async fn run(self, mut incoming: mpsc::UnboundedReceiver<Command>) {
        let mut watchdog = Watchdog::new(self.config.shard_timeout);
        let (mut shard, ready) = match self.connect(&mut watchdog).await {
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
        self.tell_ready(ready);
        loop {
            let ended = self
                .run_steps(&mut scheduler, &mut shard, &mut incoming, &mut watchdog)
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
            let reconnected = self.reconnect(&mut scheduler, &mut incoming, &mut watchdog);
            let Some((again, ready)) = reconnected.await else {
                return;
            };
            self.shared.vitals.answers();
            scheduler.reset_shard(self.scheduler_config(&ready));
            tracing::info!(
                "the shard is back; {} requests go on",
                scheduler.num_sequences()
            );
            self.tell_ready(ready);
            shard = again;
        }
    }

    /// Lets handles know that steps can run: who waits for it finds the engine healthy.
    fn tell_ready(&self, ready: Ready) {
        self.shared.healthy.store(true, Ordering::Relaxed);
        let _ = self.state.send(State::Ready(Arc::new(ready)));
    }

    /// Sends steps and takes results for as long as the shard answers.
    async fn run_steps(
        &self,
        scheduler: &mut Scheduler,
        shard: &mut ReadyShard,
        incoming: &mut mpsc::UnboundedReceiver<Command>,
        watchdog: &mut Watchdog,
    ) -> Ended {
        watchdog.start();
        let mut expiry = tokio::time::interval(LOOK_EVERY);
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
                        if let Some(work) = scheduler.oldest_work() {
                            let spent_us = result.forward_us + result.sample_us;
                            watchdog.answered(work, Duration::from_micros(spent_us));
                        }
                        if self.shared.vitals.answers() {
                            tracing::warn!("the shard answers again");
                        }
                        if let Err(violation) = scheduler.apply(&result, Instant::now()) {
                            tracing::error!("the shard broke the contract: {violation}");
                            return Ended::ShardLost(violation);
                        }
                    }
                    Ok(None) => return Ended::ShardLost("it ended the stream".into()),
                    Err(status) => return Ended::ShardLost(status.message().to_owned()),
                },
                _ = expiry.tick() => {
                    let now = Instant::now();
                    self.look_after(scheduler, now);
                    let overdue = watchdog.look(scheduler.oldest_work(), now);
                    if let Err(reason) = self.shared.vitals.looked(overdue) {
                        return Ended::ShardLost(reason);
                    }
                }
            }
        }
    }

    /// What is due every second.
    fn look_after(&self, scheduler: &mut Scheduler, now: Instant) {
        scheduler.expire(now);
        if let Some(error) = self.shared.vitals.given_up() {
            scheduler.fail_all(&error);
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
        watchdog: &mut Watchdog,
    ) -> Option<(ReadyShard, Ready)> {
        let mut expiry = tokio::time::interval(LOOK_EVERY);
        loop {
            let connecting = self.connect(watchdog);
            tokio::pin!(connecting);
            let error = loop {
                tokio::select! {
                    connected = &mut connecting => match connected {
                        Ok(connected) => return Some(connected),
                        Err(error) => break error,
                    },
                    command = incoming.recv() => self.execute(scheduler, command?),
                    _ = expiry.tick() => {
                        self.shared.vitals.beat();
                        self.look_after(scheduler, Instant::now());
                    }
                }
            };
            tracing::error!("the shard cannot go on: {error}");
            if !matches!(error, StartError::Lost(_) | StartError::Silent { .. }) {
                scheduler.fail_all(&GenerationError::Shard(error.to_string()));
            }
            tokio::time::sleep(RECONNECT_PAUSE).await;
        }
    }

    async fn connect(&self, watchdog: &mut Watchdog) -> Result<(ReadyShard, Ready), StartError> {
        let config = &self.config;
        let connected = client::connect(&config.shard, config.startup_timeout, |info| {
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
        .await;
        if let Err(StartError::Silent { .. }) = &connected {
            let reason = "the shard has not answered its warm-up".to_owned();
            self.shared.vitals.hangs(reason);
        }
        let shard = connected?;
        // Until a step is known: none takes longer for each of its tokens.
        watchdog.answered(Work::of_a_token(), shard.warmup_took);
        let limits = limits(config, &shard.info, &shard.warmup)?;
        let mut info = shard.info.clone();
        for &id in &config.more_eos_token_ids {
            if id < info.vocab_size && !info.eos_token_ids.contains(&id) {
                info.eos_token_ids.push(id);
            }
        }
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
