//! The handle of an encoder and the task behind it: collects waiting sequences into batches and sends them to the shard.

mod queue;
mod request;

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::future::try_join_all;
use futures::stream::FuturesUnordered;
use gridwork_proto::v1::shard_client::ShardClient;
use gridwork_proto::v1::{EncodeResponse, InfoResponse};
use metrics::{counter, gauge, histogram};
use tokio::sync::{mpsc, oneshot, watch};
use tonic::transport::Channel;
use tonic::{Code, Status};

pub use request::{EncodeError, EncodeSequence, Encoded, Output, Wanted};

use crate::engine::StartError;
use crate::places::{Place, Places};
use crate::request::{GenerationError, SubmitError};
use crate::shard::client::{self, ShardAddress};
use crate::shard::vitals::Vitals;
use crate::shard::watchdog::{LOOK_EVERY, Watchdog};
use queue::{Batch, BatchLimits, Queue, Waiting};

/// How to start an [`Encoder`].
#[derive(Debug, Clone)]
pub struct EncoderConfig {
    pub shard: ShardAddress,
    /// Most tokens of a batch; a longer sequence is computed alone.
    pub max_batch_tokens: u32,
    /// Most sequences of a batch.
    pub max_batch_sequences: u32,
    /// Requests that may be queued or running; the next one is refused.
    pub max_concurrent_requests: usize,
    pub queue_timeout: Duration,
    /// How long the shard may take to become ready, at the start and after a restart.
    pub startup_timeout: Duration,
    /// Limit of a batch that nothing is known of; see [`crate::shard::watchdog`].
    pub shard_timeout: Duration,
    /// Most drafts of a sequence that were asked for. An encoder has none: with drafts it is refused.
    pub speculate: u32,
}

/// One batch is computed while another waits at the shard, so that the model never waits for the router.
const MAX_IN_FLIGHT: usize = 2;

/// Pause before the shard is looked for again after it was found wanting.
const RECONNECT_PAUSE: Duration = Duration::from_millis(200);

/// Handle of an encoder; cheap to clone.
#[derive(Clone)]
pub struct Encoder {
    shared: Arc<Shared>,
    incoming: mpsc::UnboundedSender<Waiting>,
    state: watch::Receiver<State>,
}

struct Shared {
    /// Of requests that are admitted and have not ended.
    places: Arc<Places>,
    draining: AtomicBool,
    healthy: AtomicBool,
    vitals: Arc<Vitals>,
}

#[derive(Clone)]
enum State {
    Loading,
    Ready(Arc<InfoResponse>),
    Failed(StartError),
}

impl Encoder {
    /// Starts the encoder's task on the current runtime. It connects to the shard, now and after every loss of it.
    pub fn start(config: EncoderConfig) -> Self {
        let shared = Arc::new(Shared {
            places: Places::new(config.max_concurrent_requests),
            draining: AtomicBool::new(false),
            healthy: AtomicBool::new(false),
            vitals: Arc::default(),
        });
        let (incoming, received) = mpsc::unbounded_channel();
        let (state, watched) = watch::channel(State::Loading);
        let task = Task {
            config,
            shared: shared.clone(),
            state,
        };
        let vitals = shared.vitals.clone();
        tokio::spawn(async move {
            task.run(received).await;
            vitals.ended();
        });
        Encoder {
            shared,
            incoming,
            state: watched,
        }
    }

    /// Waits until the shard is loaded. [`StartError::OtherTask`] when it serves no encoder.
    pub async fn ready(&self) -> Result<Arc<InfoResponse>, StartError> {
        let mut state = self.state.clone();
        let state = state
            .wait_for(|state| !matches!(state, State::Loading))
            .await;
        match state.as_deref() {
            Ok(State::Ready(info)) => Ok(info.clone()),
            Ok(State::Failed(error)) => Err(error.clone()),
            Ok(State::Loading) | Err(_) => Err(StartError::Shard("the encoder has stopped".into())),
        }
    }

    /// What [`Encoder::ready`] returned, or `None` before that and when the shard serves no encoder.
    pub fn loaded(&self) -> Option<Arc<InfoResponse>> {
        match &*self.state.borrow() {
            State::Ready(info) => Some(info.clone()),
            _ => None,
        }
    }

    /// Whether batches can be computed now.
    pub fn is_healthy(&self) -> bool {
        self.shared.healthy.load(Ordering::Relaxed) && self.shared.vitals.hang().is_none()
    }

    /// How the encoder's task is.
    pub fn vitals(&self) -> Arc<Vitals> {
        self.shared.vitals.clone()
    }

    /// Whether [`Encoder::drain`] has been called.
    pub fn is_draining(&self) -> bool {
        self.shared.draining.load(Ordering::SeqCst)
    }

    /// Takes a place for a request that is still to be made, so that work on it is not done in vain.
    pub fn reserve(&self) -> Result<Place, SubmitError> {
        if self.is_draining() || self.shared.vitals.given_up().is_some() {
            return Err(SubmitError::Draining);
        }
        if self.loaded().is_none() {
            return Err(SubmitError::NotReady);
        }
        self.shared.places.take()
    }

    /// Computes the sequences of one request, in batches with those of others; the results are in their order. Dropping
    /// the future drops what has not been computed yet.
    pub async fn encode(
        &self,
        sequences: Vec<EncodeSequence>,
        wanted: Wanted,
    ) -> Result<Vec<Encoded>, EncodeError> {
        let place = self.reserve()?;
        self.encode_at(place, sequences, wanted).await
    }

    /// The same with a place that was taken before.
    pub async fn encode_at(
        &self,
        place: Place,
        sequences: Vec<EncodeSequence>,
        wanted: Wanted,
    ) -> Result<Vec<Encoded>, EncodeError> {
        let _place = place;
        let since = Instant::now();
        let mut replies = Vec::with_capacity(sequences.len());
        for sequence in sequences {
            let (answer, reply) = oneshot::channel();
            counter!("gridwork_prompt_tokens_total").increment(sequence.token_ids.len() as u64);
            let waiting = Waiting {
                sequence,
                wanted,
                answer,
                since,
                deaths: 0,
            };
            if self.incoming.send(waiting).is_err() {
                return Err(SubmitError::Draining.into());
            }
            replies.push(async { reply.await.unwrap_or(Err(GenerationError::Shutdown)) });
        }
        Ok(try_join_all(replies).await?)
    }

    /// Admits nothing more and returns when everything admitted has ended.
    pub async fn drain(&self) {
        self.shared.draining.store(true, Ordering::SeqCst);
        self.shared.places.all_free().await;
    }
}

/// The task: connects, sends batches until the shard is lost, and again.
struct Task {
    config: EncoderConfig,
    shared: Arc<Shared>,
    state: watch::Sender<State>,
}

/// Why batches are no longer sent.
enum Ended {
    /// No handle is left.
    NoHandles,
    ShardLost(String),
}

impl Task {
    async fn run(self, mut incoming: mpsc::UnboundedReceiver<Waiting>) {
        let (mut client, info) = match self.connect().await {
            Ok(connected) => connected,
            Err(error) => {
                let _ = self.state.send(State::Failed(error));
                return;
            }
        };
        self.tell_ready(info);
        let mut queue = Queue::default();
        let mut watchdog = Watchdog::new(self.config.shard_timeout);
        loop {
            let ended = self
                .send_batches(&mut queue, &client, &mut incoming, &mut watchdog)
                .await;
            self.shared.healthy.store(false, Ordering::Relaxed);
            let reason = match ended {
                Ended::NoHandles => return,
                Ended::ShardLost(reason) => reason,
            };
            counter!("gridwork_shard_restarts_total").increment(1);
            tracing::warn!(
                "the shard is gone ({reason}); {} sequences wait until it is back",
                queue.len()
            );
            let Some((again, info)) = self.reconnect(&mut queue, &mut incoming).await else {
                return;
            };
            tracing::info!("the shard is back; {} sequences waited", queue.len());
            self.shared.vitals.answers();
            self.tell_ready(info);
            client = again;
        }
    }

    /// Lets handles know that batches can be sent: who waits for it finds the encoder healthy.
    fn tell_ready(&self, info: InfoResponse) {
        self.shared.healthy.store(true, Ordering::Relaxed);
        let _ = self.state.send(State::Ready(Arc::new(info)));
    }

    async fn send_batches(
        &self,
        queue: &mut Queue,
        client: &ShardClient<Channel>,
        incoming: &mut mpsc::UnboundedReceiver<Waiting>,
        watchdog: &mut Watchdog,
    ) -> Ended {
        watchdog.start();
        let limits = BatchLimits {
            max_tokens: self.config.max_batch_tokens as usize,
            max_sequences: self.config.max_batch_sequences as usize,
        };
        let mut expiry = tokio::time::interval(LOOK_EVERY);
        expiry.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut in_flight = FuturesUnordered::new();
        // Tells batches in flight that they are lost.
        let (lost, given_up) = watch::channel(false);
        // Computed in this order.
        let mut works = VecDeque::new();
        loop {
            // All that have arrived, so that they are computed together.
            while let Ok(waiting) = incoming.try_recv() {
                queue.push(waiting);
            }
            // What may kill the shard must not be blamed on another batch.
            while in_flight.len() < MAX_IN_FLIGHT
                && (in_flight.is_empty() || !queue.begins_with_suspect())
            {
                let suspect = queue.begins_with_suspect();
                let Some(batch) = queue.next_batch(limits, Instant::now()) else {
                    break;
                };
                works.push_back(batch.work());
                in_flight.push(self.send(client.clone(), batch, given_up.clone()));
                if suspect {
                    break;
                }
            }
            gauge!("gridwork_queue_size").set(queue.len() as f64);
            tokio::select! {
                waiting = incoming.recv() => match waiting {
                    Some(waiting) => queue.push(waiting),
                    None => return Ended::NoHandles,
                },
                Some((batch, result)) = in_flight.next() => {
                    if let (Some(work), Ok(response)) = (works.pop_front(), &result) {
                        watchdog.answered(work, Duration::from_micros(response.forward_us));
                        if self.shared.vitals.answers() {
                            tracing::warn!("the shard answers again");
                        }
                    }
                    if let Err(reason) = settle(queue, batch, result) {
                        give_up(queue, in_flight).await;
                        return Ended::ShardLost(reason);
                    }
                }
                _ = expiry.tick() => {
                    let now = Instant::now();
                    self.look_after(queue, now);
                    let overdue = watchdog.look(works.front().copied(), now);
                    if let Err(reason) = self.shared.vitals.looked(overdue) {
                        lost.send_replace(true);
                        give_up(queue, in_flight).await;
                        return Ended::ShardLost(reason);
                    }
                }
            }
        }
    }

    /// What is due every second.
    fn look_after(&self, queue: &mut Queue, now: Instant) {
        queue.expire(self.config.queue_timeout, now);
        if let Some(error) = self.shared.vitals.given_up() {
            queue.fail_all(&error);
        }
    }

    async fn send(
        &self,
        mut client: ShardClient<Channel>,
        batch: Batch,
        mut lost: watch::Receiver<bool>,
    ) -> (Batch, Result<EncodeResponse, Status>) {
        histogram!("gridwork_step_sequences").record(batch.members.len() as f64);
        histogram!("gridwork_step_tokens").record(batch.num_tokens() as f64);
        for member in &batch.members {
            histogram!("gridwork_request_queue_seconds")
                .record(batch.started.duration_since(member.since).as_secs_f64());
        }
        let call = client.encode(batch.request());
        let result = tokio::select! {
            result = call => result.map(tonic::Response::into_inner),
            // The sender is gone only when this is, too.
            _ = lost.wait_for(|lost| *lost) => Err(Status::deadline_exceeded("given up")),
        };
        (batch, result)
    }

    /// Waits for a restarted shard, while requests come and go. `None`: no handle is left.
    async fn reconnect(
        &self,
        queue: &mut Queue,
        incoming: &mut mpsc::UnboundedReceiver<Waiting>,
    ) -> Option<(ShardClient<Channel>, InfoResponse)> {
        let mut expiry = tokio::time::interval(LOOK_EVERY);
        loop {
            let connecting = self.connect();
            tokio::pin!(connecting);
            let error = loop {
                tokio::select! {
                    connected = &mut connecting => match connected {
                        Ok(connected) => return Some(connected),
                        Err(error) => break error,
                    },
                    waiting = incoming.recv() => queue.push(waiting?),
                    _ = expiry.tick() => {
                        self.shared.vitals.beat();
                        self.look_after(queue, Instant::now());
                    }
                }
            };
            tracing::error!("the shard cannot go on: {error}");
            if !matches!(error, StartError::Lost(_)) {
                queue.fail_all(&GenerationError::Shard(error.to_string()));
            }
            tokio::time::sleep(RECONNECT_PAUSE).await;
        }
    }

    async fn connect(&self) -> Result<(ShardClient<Channel>, InfoResponse), StartError> {
        let (client, info) = client::find(&self.config.shard, self.config.startup_timeout).await?;
        if client::generates(&info) {
            return Err(StartError::OtherTask { task: info.task() });
        }
        // Refused here and not by the engine, so that not even for a moment a server that is about to end looks ready.
        match self.config.speculate {
            0 => Ok((client, info)),
            speculate => Err(StartError::NothingToDraft {
                speculate,
                task: info.task(),
            }),
        }
    }
}

/// The shard is lost: what is in flight fails, unless its answer has just arrived.
async fn give_up(
    queue: &mut Queue,
    mut in_flight: FuturesUnordered<impl Future<Output = (Batch, Result<EncodeResponse, Status>)>>,
) {
    while let Some((batch, result)) = in_flight.next().await {
        let _ = settle(queue, batch, result);
    }
}

/// Passes on what the shard made of a batch. The error says how the shard was lost; the batch is back in the queue then.
fn settle(
    queue: &mut Queue,
    batch: Batch,
    result: Result<EncodeResponse, Status>,
) -> Result<(), String> {
    let now = Instant::now();
    match result {
        Ok(response) if response.encodings.len() == batch.members.len() => {
            let elapsed = now.duration_since(batch.started).as_secs_f64();
            counter!("gridwork_steps_total").increment(1);
            histogram!("gridwork_step_seconds").record(elapsed);
            histogram!("gridwork_step_forward_seconds").record(response.forward_us as f64 / 1e6);
            for _ in &batch.members {
                histogram!("gridwork_request_inference_seconds").record(elapsed);
            }
            batch.answer(response.encodings, now);
            Ok(())
        }
        Ok(response) => {
            let (got, sent) = (response.encodings.len(), batch.members.len());
            let message = format!("the shard answered {got} of {sent} sequences");
            tracing::error!("{message}");
            batch.fail(&GenerationError::Shard(message));
            Ok(())
        }
        Err(status)
            if matches!(
                status.code(),
                Code::InvalidArgument | Code::FailedPrecondition
            ) =>
        {
            tracing::error!("the shard refuses a batch: {}", status.message());
            batch.fail(&GenerationError::Shard(status.message().to_owned()));
            Ok(())
        }
        Err(status) => {
            queue.take_back(batch);
            Err(status.message().to_owned())
        }
    }
}
