//! The handle of an encoder: admits sequences and returns their results. The task behind it runs the batches.

mod batch_loop;
mod queue;
mod request;

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::try_join_all;
use gridwork_proto::v1::InfoResponse;
use tokio::sync::{mpsc, oneshot};

pub use request::{EncodeError, EncodeSequence, Encoded, Output, Wanted};

use crate::error::{GenerationError, StartError, SubmitError};
use crate::lifecycle::Lifecycle;
use crate::metrics::EngineMetrics;
use crate::permits::Permit;
use crate::shard::client::ShardAddress;
use crate::shard::vitals::Vitals;
use crate::tenant::Tenant;
use batch_loop::{BatchLoop, EncodeConnector};
use queue::{BatchLimits, Queue, Waiting};

/// Settings of an [`Encoder`].
#[derive(Debug, Clone)]
pub struct EncoderConfig {
    pub shard: ShardAddress,
    /// Maximum number of tokens in a batch; a longer sequence is computed alone.
    pub max_batch_tokens: u32,
    /// Maximum number of sequences in a batch.
    pub max_batch_sequences: u32,
    /// Maximum number of requests queued or running; the next one is refused.
    pub max_concurrent_requests: usize,
    pub queue_timeout: Duration,
    /// Time within which the shard must become ready, at the start and after a restart.
    pub startup_timeout: Duration,
    /// Limit of a batch while no batch before it is known; see [`crate::shard::watchdog`].
    pub shard_timeout: Duration,
    /// Requested number of drafts. Encoders have none: any other value than 0 is refused.
    pub speculate: u32,
}

/// Handle of an encoder; cheap to clone.
#[derive(Clone)]
pub struct Encoder {
    lifecycle: Arc<Lifecycle<InfoResponse>>,
    incoming: mpsc::UnboundedSender<Waiting>,
    metrics: EngineMetrics,
}

impl Encoder {
    /// Starts the encoder's task on the current runtime. The task connects to the shard, now and after every loss of
    /// it.
    pub fn start(config: EncoderConfig) -> Self {
        let metrics = EngineMetrics::new();
        let worker = BatchLoop {
            queue: Queue::default(),
            limits: BatchLimits {
                max_tokens: config.max_batch_tokens as usize,
                max_sequences: config.max_batch_sequences as usize,
            },
            queue_timeout: config.queue_timeout,
            metrics: metrics.clone(),
        };
        let (incoming, received) = mpsc::unbounded_channel();
        let lifecycle = Lifecycle::start(
            config.max_concurrent_requests,
            config.shard_timeout,
            EncodeConnector { config },
            received,
            metrics.clone(),
            |_info: &InfoResponse| worker,
        );
        Encoder {
            lifecycle,
            incoming,
            metrics,
        }
    }

    /// Waits until the shard is loaded. [`StartError::OtherTask`] when it serves no encoder.
    pub async fn ready(&self) -> Result<Arc<InfoResponse>, StartError> {
        self.lifecycle.ready().await
    }

    /// Result of [`Encoder::ready`], or `None` before that and when the shard serves no encoder.
    pub fn loaded(&self) -> Option<Arc<InfoResponse>> {
        self.lifecycle.loaded()
    }

    /// True if batches can be computed now. False while the shard is loading, hangs, or is being restarted.
    pub fn is_healthy(&self) -> bool {
        self.lifecycle.is_healthy()
    }

    /// Health of the encoder's task and its shard.
    pub fn vitals(&self) -> Arc<Vitals> {
        self.lifecycle.vitals()
    }

    /// True if [`Encoder::drain`] has been called.
    pub fn is_draining(&self) -> bool {
        self.lifecycle.is_draining()
    }

    /// Takes a permit for a request of a tenant before it is built, so that no work is done for a request that cannot be
    /// admitted.
    pub fn reserve(&self, tenant: Option<&Arc<Tenant>>) -> Result<Permit, SubmitError> {
        self.lifecycle.reserve(tenant)
    }

    /// Computes the sequences of one request, in batches with those of others. The results are in the order of
    /// `sequences`. Dropping the future drops the sequences that have not been computed yet.
    pub async fn encode(
        &self,
        sequences: Vec<EncodeSequence>,
        wanted: Wanted,
    ) -> Result<Vec<Encoded>, EncodeError> {
        let permit = self.reserve(None)?;
        self.encode_with(permit, sequences, wanted).await
    }

    /// [`Encoder::encode`] with a permit that was taken before.
    pub async fn encode_with(
        &self,
        permit: Permit,
        sequences: Vec<EncodeSequence>,
        wanted: Wanted,
    ) -> Result<Vec<Encoded>, EncodeError> {
        let tenant = permit.tenant().cloned();
        let since = Instant::now();
        let mut replies = Vec::with_capacity(sequences.len());
        for sequence in sequences {
            let (answer, reply) = oneshot::channel();
            let num_tokens = sequence.token_ids.len() as u64;
            self.metrics.prompt_tokens.increment(num_tokens);
            if let Some(tenant) = &tenant {
                tenant.charge(num_tokens as usize);
            }
            let waiting = Waiting {
                sequence,
                wanted,
                answer,
                tenant: tenant.as_ref().map(|tenant| tenant.id()),
                turn: 0,
                since,
                deaths: 0,
            };
            if self.incoming.send(waiting).is_err() {
                return Err(SubmitError::Draining.into());
            }
            replies.push(async { reply.await.unwrap_or(Err(GenerationError::Shutdown)) });
        }
        let encoded = try_join_all(replies).await;
        drop(permit);
        Ok(encoded?)
    }

    /// Admits nothing more. Returns when everything admitted has ended.
    pub async fn drain(&self) {
        self.lifecycle.drain().await;
    }
}
