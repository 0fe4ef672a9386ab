//! A shard without a model: it answers every step as soon as it has read it, or after a fixed time.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use gridwork_proto::PROTOCOL_VERSION;
use gridwork_proto::v1::shard_server::{Shard, ShardServer};
use gridwork_proto::v1::{
    EncodeRequest, EncodeResponse, HealthRequest, HealthResponse, InfoRequest, InfoResponse, Step,
    StepResult, WarmupRequest, WarmupResponse, health_response,
};
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Request, Response, Status, Streaming};

/// Ordinary words of most vocabularies lie here; no special token does.
const FIRST_TOKEN: u32 = 1_000;
const NUM_TOKENS: u32 = 500;

/// When each token of each sequence was sent, by the first token of its prompt; filled while recording.
pub type SentTimes = Arc<Mutex<HashMap<u32, Vec<Instant>>>>;

#[derive(Clone)]
pub struct NullShard {
    /// Time that every step takes.
    step_time: Duration,
    /// `None`: nothing is recorded, so that throughput is not disturbed.
    sent: Option<SentTimes>,
}

/// What a real shard would know of a sequence.
struct Sequence {
    first_token: u32,
    known_tokens: u32,
    computed_tokens: u32,
}

impl NullShard {
    pub fn new(step_time: Duration, sent: Option<SentTimes>) -> Self {
        NullShard { step_time, sent }
    }

    /// Serves until the task is dropped.
    pub async fn serve(self, listener: UnixListener) -> Result<(), tonic::transport::Error> {
        tonic::transport::Server::builder()
            .add_service(ShardServer::new(self))
            .serve_with_incoming(UnixListenerStream::new(listener))
            .await
    }

    fn answer(&self, step: &Step, sequences: &mut HashMap<u32, Sequence>) -> StepResult {
        for id in &step.released {
            sequences.remove(id);
        }
        for new in &step.admitted {
            let sequence = Sequence {
                first_token: new.token_ids.first().copied().unwrap_or_default(),
                known_tokens: new.token_ids.len() as u32,
                computed_tokens: new.num_computed_tokens,
            };
            sequences.insert(new.id, sequence);
        }
        let mut result = StepResult {
            step_id: step.id,
            ..Default::default()
        };
        let now = Instant::now();
        let mut sent = self.sent.as_ref().and_then(|sent| sent.lock().ok());
        for (id, num_tokens) in step.sequence_ids.iter().zip(&step.num_tokens) {
            let Some(sequence) = sequences.get_mut(id) else {
                continue;
            };
            sequence.computed_tokens += num_tokens;
            if sequence.computed_tokens == sequence.known_tokens {
                result.sequence_ids.push(*id);
                result
                    .token_ids
                    .push(FIRST_TOKEN + sequence.known_tokens % NUM_TOKENS);
                sequence.known_tokens += 1;
                if let Some(sent) = &mut sent {
                    sent.entry(sequence.first_token).or_default().push(now);
                }
            }
        }
        result
    }
}

#[tonic::async_trait]
impl Shard for NullShard {
    async fn info(&self, _request: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        Ok(Response::new(InfoResponse {
            protocol_version: PROTOCOL_VERSION,
            shard_version: env!("CARGO_PKG_VERSION").into(),
            model_type: "null".into(),
            model_impl: "paged".into(),
            attention: "none".into(),
            dtype: "none".into(),
            device: "none".into(),
            vocab_size: 49_152,
            max_context_tokens: 8_192,
            world_size: 1,
            shares_blocks: true,
            ..Default::default()
        }))
    }

    async fn warmup(
        &self,
        _request: Request<WarmupRequest>,
    ) -> Result<Response<WarmupResponse>, Status> {
        Ok(Response::new(WarmupResponse {
            num_blocks: 1 << 18,
            kv_cache_bytes: 0,
            bytes_per_token: 0,
        }))
    }

    async fn encode(
        &self,
        _request: Request<EncodeRequest>,
    ) -> Result<Response<EncodeResponse>, Status> {
        Err(Status::failed_precondition("this shard generates"))
    }

    async fn health(
        &self,
        _request: Request<HealthRequest>,
    ) -> Result<Response<HealthResponse>, Status> {
        let state = health_response::State::Ready.into();
        Ok(Response::new(HealthResponse {
            state,
            message: "ready".into(),
            rank: 0,
        }))
    }

    type RunStream = Pin<Box<dyn Stream<Item = Result<StepResult, Status>> + Send>>;

    async fn run(
        &self,
        request: Request<Streaming<Step>>,
    ) -> Result<Response<Self::RunStream>, Status> {
        let mut steps = request.into_inner();
        let (results, receiver) = mpsc::channel(4);
        let shard = self.clone();
        tokio::spawn(async move {
            let mut sequences = HashMap::new();
            while let Ok(Some(step)) = steps.message().await {
                if !shard.step_time.is_zero() && !step.sequence_ids.is_empty() {
                    tokio::time::sleep(shard.step_time).await;
                }
                if results
                    .send(Ok(shard.answer(&step, &mut sequences)))
                    .await
                    .is_err()
                {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}
