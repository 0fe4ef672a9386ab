//! The fake shard as a gRPC service.

use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use gridwork_proto::PROTOCOL_VERSION;
use gridwork_proto::v1::shard_server::{Shard, ShardServer};
use gridwork_proto::v1::{
    EncodeRequest, EncodeResponse, HealthRequest, HealthResponse, InfoRequest, InfoResponse, Step,
    StepResult, Task, WarmupRequest, WarmupResponse, health_response,
};
use tokio::net::UnixListener;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Request, Response, Status, Streaming};

use crate::sequences::{FakeSequence, FakeSequences};

type Sample = dyn Fn(&FakeSequence) -> u32 + Send + Sync;
type Encode =
    dyn Fn(EncodeRequest) -> BoxFuture<'static, Result<EncodeResponse, Status>> + Send + Sync;
type Health = dyn Fn() -> Option<HealthResponse> + Send + Sync;

/// A shard without a model. Clones behave alike and share the functions that they were given.
#[derive(Clone)]
pub struct FakeShard {
    pub info: InfoResponse,
    pub warmup: WarmupResponse,
    /// Time that every step with sequences takes.
    pub step_time: Duration,
    sample: Option<Arc<Sample>>,
    encode: Option<Arc<Encode>>,
    health: Arc<Health>,
}

impl FakeShard {
    /// A shard that is ready, and neither generates nor encodes.
    pub fn idle() -> Self {
        FakeShard {
            info: InfoResponse {
                protocol_version: PROTOCOL_VERSION,
                ..Default::default()
            },
            warmup: WarmupResponse::default(),
            step_time: Duration::ZERO,
            sample: None,
            encode: None,
            health: Arc::new(|| {
                Some(HealthResponse {
                    state: health_response::State::Ready.into(),
                    message: "ready".to_owned(),
                    rank: 0,
                })
            }),
        }
    }

    /// A shard that generates. `sample` gives the next token of a sequence.
    pub fn generating(sample: impl Fn(&FakeSequence) -> u32 + Send + Sync + 'static) -> Self {
        FakeShard {
            sample: Some(Arc::new(sample)),
            ..Self::idle()
        }
    }

    /// A shard that serves an encoder. `encode` computes a batch.
    pub fn encoding<F>(
        task: Task,
        encode: impl Fn(EncodeRequest) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<EncodeResponse, Status>> + Send + 'static,
    {
        let mut shard = Self::idle();
        shard.info.task = task.into();
        shard.encode = Some(Arc::new(move |batch| Box::pin(encode(batch))));
        shard
    }

    /// With `health` as the answer to health requests; `None`: a request that is never answered.
    pub fn with_health(
        self,
        health: impl Fn() -> Option<HealthResponse> + Send + Sync + 'static,
    ) -> Self {
        FakeShard {
            health: Arc::new(health),
            ..self
        }
    }

    /// Serves on `listener` until the future is dropped.
    pub async fn serve(self, listener: UnixListener) -> Result<(), tonic::transport::Error> {
        tonic::transport::Server::builder()
            .add_service(ShardServer::new(self))
            .serve_with_incoming(UnixListenerStream::new(listener))
            .await
    }

    /// Serves on `socket`, on a runtime of its own, until the result is dropped. It listens at once.
    pub fn serve_at(self, socket: &Path) -> Serving {
        let _ = std::fs::remove_file(socket);
        let listener = StdUnixListener::bind(socket).expect("a path for a socket");
        listener
            .set_nonblocking(true)
            .expect("a socket that does not block");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.spawn(async move {
            let listener = UnixListener::from_std(listener).expect("a socket of this runtime");
            let _ = self.serve(listener).await;
        });
        Serving {
            socket: socket.to_owned(),
            runtime: Some(runtime),
        }
    }
}

/// A fake shard that is served. Dropping it is the shard's death: connections break at once.
pub struct Serving {
    pub socket: PathBuf,
    runtime: Option<Runtime>,
}

impl Drop for Serving {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

#[tonic::async_trait]
impl Shard for FakeShard {
    type RunStream = Pin<Box<dyn Stream<Item = Result<StepResult, Status>> + Send>>;

    async fn info(&self, _: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        Ok(Response::new(self.info.clone()))
    }

    async fn warmup(&self, _: Request<WarmupRequest>) -> Result<Response<WarmupResponse>, Status> {
        if self.sample.is_none() {
            return Err(Status::failed_precondition("this shard does not generate"));
        }
        Ok(Response::new(self.warmup))
    }

    async fn health(&self, _: Request<HealthRequest>) -> Result<Response<HealthResponse>, Status> {
        match (self.health)() {
            Some(health) => Ok(Response::new(health)),
            None => std::future::pending().await,
        }
    }

    async fn encode(
        &self,
        request: Request<EncodeRequest>,
    ) -> Result<Response<EncodeResponse>, Status> {
        match &self.encode {
            Some(encode) => encode(request.into_inner()).await.map(Response::new),
            None => Err(Status::failed_precondition("this shard is no encoder")),
        }
    }

    async fn run(
        &self,
        steps: Request<Streaming<Step>>,
    ) -> Result<Response<Self::RunStream>, Status> {
        let Some(sample) = self.sample.clone() else {
            return Err(Status::failed_precondition("this shard does not generate"));
        };
        let mut steps = steps.into_inner();
        let (results, received) = mpsc::channel(4);
        let step_time = self.step_time;
        tokio::spawn(async move {
            let mut sequences = FakeSequences::default();
            while let Ok(Some(step)) = steps.message().await {
                if !step_time.is_zero() && !step.sequence_ids.is_empty() {
                    tokio::time::sleep(step_time).await;
                }
                let result = sequences.run(&step, &*sample);
                if results.send(Ok(result)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(received))))
    }
}
