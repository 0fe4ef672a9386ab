//! The encoder's task: collects waiting sequences into batches and sends them to the shard.

use std::collections::VecDeque;
use std::future::Future;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use gridwork_proto::v1::shard_client::ShardClient;
use gridwork_proto::v1::{EncodeResponse, InfoResponse};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::EncoderConfig;
use super::queue::{Batch, BatchLimits, Queue, Waiting};
use crate::error::{GenerationError, StartError};
use crate::lifecycle::{Connector, Ended, Worker};
use crate::metrics::EngineMetrics;
use crate::shard::client;
use crate::shard::monitor::Monitor;

/// Maximum number of batches at the shard: while one is computed another waits there, so that the model never waits for
/// the router.
const MAX_IN_FLIGHT: usize = 2;

/// Connects to a shard that serves an encoder.
pub(super) struct EncodeConnector {
    pub config: EncoderConfig,
}

impl Connector for EncodeConnector {
    type Connection = ShardClient<Channel>;
    type Ready = InfoResponse;

    async fn connect(&self) -> Result<(ShardClient<Channel>, InfoResponse), StartError> {
        let (client, info) = client::find(&self.config.shard, self.config.startup_timeout).await?;
        if client::generates(&info) {
            return Err(StartError::OtherTask { task: info.task() });
        }
        // Refused here rather than by the engine, so that a server about to end never looks ready.
        match self.config.speculate {
            0 => Ok((client, info)),
            speculate => Err(StartError::NothingToDraft {
                speculate,
                task: info.task(),
            }),
        }
    }
}

/// The queue, and the batches made of it.
pub(super) struct BatchLoop {
    pub queue: Queue,
    pub limits: BatchLimits,
    pub queue_timeout: Duration,
    pub metrics: EngineMetrics,
}

impl Worker<EncodeConnector> for BatchLoop {
    type Command = Waiting;

    async fn work(
        &mut self,
        client: &mut ShardClient<Channel>,
        incoming: &mut UnboundedReceiver<Waiting>,
        monitor: &mut Monitor,
    ) -> Ended {
        let mut ticks = Monitor::ticks();
        let mut in_flight = FuturesUnordered::new();
        // Tells the batches in flight that the shard is given up.
        let (give_up, given_up) = watch::channel(false);
        // Work of the batches in flight, in the order in which the shard computes them.
        let mut works = VecDeque::new();
        loop {
            // All sequences that have arrived are taken first, so that they are computed together.
            while let Ok(waiting) = incoming.try_recv() {
                self.queue.push(waiting);
            }
            // A suspect is sent alone, so that its crash is not blamed on another batch.
            while in_flight.len() < MAX_IN_FLIGHT
                && (in_flight.is_empty() || !self.queue.begins_with_suspect())
            {
                let suspect = self.queue.begins_with_suspect();
                let Some(batch) = self.queue.next_batch(self.limits, Instant::now()) else {
                    break;
                };
                works.push_back(batch.work());
                self.metrics.batch_sent(&batch);
                in_flight.push(send(client.clone(), batch, given_up.clone()));
                if suspect {
                    break;
                }
            }
            self.metrics.queue_size.set(self.queue.len() as f64);
            tokio::select! {
                waiting = incoming.recv() => match waiting {
                    Some(waiting) => self.queue.push(waiting),
                    None => return Ended::NoHandles,
                },
                Some((batch, result)) = in_flight.next() => {
                    if let (Some(work), Ok(response)) = (works.pop_front(), &result) {
                        monitor.answered(work, Duration::from_micros(response.forward_us));
                    }
                    if let Err(reason) = self.settle(batch, result) {
                        self.settle_all(in_flight).await;
                        return Ended::ShardLost(reason);
                    }
                }
                _ = ticks.tick() => {
                    let now = Instant::now();
                    self.every_second(monitor, now);
                    if let Err(reason) = monitor.look(works.front().copied(), now) {
                        give_up.send_replace(true);
                        self.settle_all(in_flight).await;
                        return Ended::ShardLost(reason);
                    }
                }
            }
        }
    }

    fn execute(&mut self, waiting: Waiting) {
        self.queue.push(waiting);
    }

    fn expire(&mut self, now: Instant) {
        self.queue.expire(self.queue_timeout, now);
    }

    fn fail_all(&mut self, error: &GenerationError) {
        self.queue.fail_all(error);
    }

    fn num_sequences(&self) -> usize {
        self.queue.len()
    }

    /// Batches in flight are back in the queue already.
    fn shard_lost(&mut self) {}

    fn shard_restored(&mut self, _info: &InfoResponse) {}
}

impl BatchLoop {
    /// Settles the batches in flight after the shard is lost: all fail except those answered just before.
    async fn settle_all(
        &mut self,
        mut in_flight: FuturesUnordered<
            impl Future<Output = (Batch, Result<EncodeResponse, Status>)>,
        >,
    ) {
        while let Some((batch, result)) = in_flight.next().await {
            let _ = self.settle(batch, result);
        }
    }

    /// Hands a batch's results to its clients. An error says how the shard was lost; the batch is back in the queue
    /// then.
    fn settle(
        &mut self,
        batch: Batch,
        result: Result<EncodeResponse, Status>,
    ) -> Result<(), String> {
        let now = Instant::now();
        match result {
            Ok(response) if response.encodings.len() == batch.members.len() => {
                self.metrics.batch_done(&batch, &response, now);
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
                self.queue.take_back(batch);
                Err(status.message().to_owned())
            }
        }
    }
}

async fn send(
    mut client: ShardClient<Channel>,
    batch: Batch,
    mut given_up: watch::Receiver<bool>,
) -> (Batch, Result<EncodeResponse, Status>) {
    let call = client.encode(batch.request());
    let result = tokio::select! {
        result = call => result.map(tonic::Response::into_inner),
        // The sender outlives this future, so the wait ends only when it is told to.
        _ = given_up.wait_for(|given_up| *given_up) => Err(Status::deadline_exceeded("given up")),
    };
    (batch, result)
}

impl EngineMetrics {
    fn batch_sent(&self, batch: &Batch) {
        self.step(batch.members.len(), batch.num_tokens());
        for member in &batch.members {
            self.queued(batch.started.duration_since(member.since));
        }
    }

    fn batch_done(&self, batch: &Batch, response: &EncodeResponse, now: Instant) {
        let elapsed = now.duration_since(batch.started);
        self.steps.increment(1);
        self.step_duration.record(elapsed.as_secs_f64());
        self.step_forward.record(response.forward_us as f64 * 1e-6);
        for _ in &batch.members {
            self.inference.record(elapsed.as_secs_f64());
        }
    }
}
