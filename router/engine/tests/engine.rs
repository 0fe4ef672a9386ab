//! The engine over a real gRPC stream, with a shard that counts: the token after `n` is `n + 1`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use gridwork_engine::{
    CacheNamespace, Engine, EngineConfig, Event, FinishReason, GenerationError, GenerationRequest,
    LogprobOptions, Priority, SamplingParameters, ShardAddress, StartError, StopConditions,
    SubmitError,
};
use gridwork_proto::PROTOCOL_VERSION;
use gridwork_proto::v1::shard_server::{Shard, ShardServer};
use gridwork_proto::v1::{
    EncodeRequest, EncodeResponse, HealthRequest, HealthResponse, InfoRequest, InfoResponse, Step,
    StepResult, WarmupRequest, WarmupResponse, health_response,
};
use tokenizers::Tokenizer;
use tokenizers::models::wordlevel::WordLevel;
use tokio::net::UnixListener;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Request, Response, Status, Streaming};

const CONTEXT_TOKENS: u32 = 256;

/// A shard that counts, at a pace.
#[derive(Clone)]
struct CountingShard {
    protocol_version: u32,
    num_blocks: u32,
    step_time: Duration,
}

impl Default for CountingShard {
    fn default() -> Self {
        CountingShard {
            protocol_version: PROTOCOL_VERSION,
            num_blocks: 64,
            step_time: Duration::ZERO,
        }
    }
}

#[tonic::async_trait]
impl Shard for CountingShard {
    type RunStream = Pin<Box<dyn Stream<Item = Result<StepResult, Status>> + Send>>;

    async fn info(&self, _: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        Ok(Response::new(InfoResponse {
            protocol_version: self.protocol_version,
            max_context_tokens: CONTEXT_TOKENS,
            ..Default::default()
        }))
    }

    async fn warmup(&self, _: Request<WarmupRequest>) -> Result<Response<WarmupResponse>, Status> {
        Ok(Response::new(WarmupResponse {
            num_blocks: self.num_blocks,
            ..Default::default()
        }))
    }

    async fn health(&self, _: Request<HealthRequest>) -> Result<Response<HealthResponse>, Status> {
        let state = health_response::State::Ready.into();
        Ok(Response::new(HealthResponse {
            state,
            ..Default::default()
        }))
    }

    async fn encode(&self, _: Request<EncodeRequest>) -> Result<Response<EncodeResponse>, Status> {
        Err(Status::failed_precondition("this shard generates"))
    }

    async fn run(
        &self,
        steps: Request<Streaming<Step>>,
    ) -> Result<Response<Self::RunStream>, Status> {
        let mut steps = steps.into_inner();
        let (results, stream) = tokio::sync::mpsc::channel(4);
        let step_time = self.step_time;
        tokio::spawn(async move {
            // Per row: known tokens, and how many of them are computed.
            let mut rows: HashMap<u32, (Vec<u32>, usize)> = HashMap::new();
            while let Ok(Some(step)) = steps.message().await {
                tokio::time::sleep(step_time).await;
                for row in &step.released {
                    rows.remove(row);
                }
                rows.extend(
                    step.admitted
                        .into_iter()
                        .map(|new| (new.id, (new.token_ids, 0))),
                );
                let mut result = StepResult {
                    step_id: step.id,
                    ..Default::default()
                };
                for (row, count) in step.sequence_ids.iter().zip(&step.num_tokens) {
                    let Some((tokens, computed)) = rows.get_mut(row) else {
                        return;
                    };
                    *computed += *count as usize;
                    if *computed == tokens.len() {
                        let next = tokens[tokens.len() - 1] + 1;
                        tokens.push(next);
                        result.sequence_ids.push(*row);
                        result.token_ids.push(next);
                    }
                }
                if results.send(Ok(result)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

/// Serves a shard on `socket` until the handle is aborted; connections end with their tasks.
fn serve(shard: CountingShard, socket: &Path) -> tokio::runtime::Runtime {
    let _ = std::fs::remove_file(socket);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("runtime");
    let socket = socket.to_owned();
    let (listening, is_listening) = std::sync::mpsc::channel();
    let _serving: JoinHandle<()> = runtime.spawn(async move {
        let listener = UnixListener::bind(socket).expect("a free socket");
        listening.send(()).expect("the test waits");
        let service = tonic::transport::Server::builder().add_service(ShardServer::new(shard));
        let _ = service
            .serve_with_incoming(UnixListenerStream::new(listener))
            .await;
    });
    is_listening.recv().expect("the shard listens");
    runtime
}

struct Setup {
    _folder: tempfile::TempDir,
    socket: PathBuf,
    engine: Engine,
}

fn config(socket: &Path) -> EngineConfig {
    EngineConfig {
        shard: ShardAddress::Unix(socket.to_owned()),
        block_size_tokens: 16,
        max_batch_tokens: 64,
        max_sequences: 8,
        max_total_tokens: None,
        max_batch_total_tokens: None,
        max_concurrent_requests: 4,
        queue_timeout: Duration::from_secs(60),
        prefix_cache: true,
        speculate: 0,
        startup_timeout: Duration::from_secs(10),
        shard_timeout: Duration::from_secs(10),
        more_eos_token_ids: Vec::new(),
    }
}

fn start(adapt: impl FnOnce(&mut EngineConfig)) -> Setup {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("shard");
    let mut config = config(&socket);
    adapt(&mut config);
    let engine = Engine::start(config, Arc::new(Tokenizer::new(WordLevel::default())));
    Setup {
        _folder: folder,
        socket,
        engine,
    }
}

fn request(first: u32, max_new_tokens: u32) -> GenerationRequest {
    GenerationRequest {
        token_ids: vec![first],
        max_new_tokens,
        sampling: SamplingParameters {
            greedy: true,
            ..Default::default()
        },
        stop: StopConditions::default(),
        logprobs: LogprobOptions::default(),
        priority: Priority::Normal,
        namespace: CacheNamespace::default(),
        skip_special_tokens: true,
        queue_timeout: None,
        place: Default::default(),
        span: tracing::Span::none(),
    }
}

async fn collect(
    generation: impl Stream<Item = Result<Event, GenerationError>>,
) -> Result<(Vec<u32>, Option<FinishReason>), GenerationError> {
    let mut generation = std::pin::pin!(generation);
    let (mut ids, mut reason) = (Vec::new(), None);
    while let Some(event) = generation.next().await {
        if let Event::Token(token) = event? {
            ids.push(token.id);
            reason = token.finish.map(|finish| finish.reason);
        }
    }
    Ok((ids, reason))
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_answered_side_by_side() {
    let setup = start(|_| ());
    assert_eq!(
        setup.engine.submit(request(1, 1)).err(),
        Some(SubmitError::NotReady)
    );
    let _shard = serve(CountingShard::default(), &setup.socket);
    let ready = setup.engine.ready().await.expect("ready");
    assert_eq!(ready.limits.max_total_tokens, CONTEXT_TOKENS);
    let generations: Vec<_> = (0..4)
        .map(|i| setup.engine.submit(request(i * 100, 50)).expect("admitted"))
        .collect();
    let overloaded = setup.engine.submit(request(0, 1)).err();
    assert!(matches!(
        overloaded,
        Some(SubmitError::Overloaded { limit: 4, .. })
    ));
    for (i, generation) in generations.into_iter().enumerate() {
        let (ids, reason) = collect(generation).await.expect("tokens");
        assert_eq!(
            ids,
            (1..=50).map(|t| i as u32 * 100 + t).collect::<Vec<_>>()
        );
        assert_eq!(reason, Some(FinishReason::Length));
    }
    std::mem::forget(_shard);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_goes_on_where_it_was_when_the_shard_comes_back() {
    let setup = start(|_| ());
    let slow = CountingShard {
        step_time: Duration::from_millis(5),
        ..Default::default()
    };
    let shard = serve(slow.clone(), &setup.socket);
    setup.engine.ready().await.expect("ready");
    let mut generation = setup.engine.submit(request(0, 100)).expect("admitted");
    let mut ids = Vec::new();
    let mut shard = Some(shard);
    while let Some(event) = generation.next().await {
        if let Event::Token(token) = event.expect("no failure") {
            ids.push(token.id);
        }
        if ids.len() == 20
            && let Some(first) = shard.take()
        {
            first.shutdown_background();
            std::mem::forget(serve(slow.clone(), &setup.socket));
        }
    }
    assert_eq!(ids, (1..=100).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_a_generation_makes_room_and_draining_waits_for_the_rest() {
    let setup = start(|config| config.max_concurrent_requests = 2);
    std::mem::forget(serve(
        CountingShard {
            step_time: Duration::from_millis(2),
            ..Default::default()
        },
        &setup.socket,
    ));
    setup.engine.ready().await.expect("ready");
    let kept = setup.engine.submit(request(0, 100)).expect("admitted");
    drop(setup.engine.submit(request(0, 100)).expect("admitted"));
    // The place is free as soon as the engine's task has heard of it.
    let again = loop {
        match setup.engine.submit(request(0, 100)) {
            Err(SubmitError::Overloaded { .. }) => tokio::task::yield_now().await,
            other => break other,
        }
    };
    drop(again.expect("room again"));
    let collected = tokio::spawn(collect(kept));
    setup.engine.drain().await;
    assert!(collected.is_finished() || collected.await.expect("joined").is_ok());
    assert_eq!(
        setup.engine.submit(request(0, 1)).err(),
        Some(SubmitError::Draining)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_is_free_when_its_generation_has_ended_whoever_reads_it() {
    let setup = start(|config| config.max_concurrent_requests = 1);
    std::mem::forget(serve(CountingShard::default(), &setup.socket));
    setup.engine.ready().await.expect("ready");
    let unread = setup.engine.submit(request(0, 5)).expect("admitted");
    let mut reserved = loop {
        match setup.engine.reserve() {
            Ok(place) => break request_at(place),
            Err(SubmitError::Overloaded { .. }) => {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            Err(error) => panic!("{error}"),
        }
    };
    // The place was taken before, and a copy has none.
    assert!(setup.engine.submit(request(0, 5)).is_err());
    assert!(setup.engine.submit(reserved.clone()).is_err());
    reserved.max_new_tokens = 3;
    let generation = setup.engine.submit(reserved).expect("its own place");
    assert_eq!(collect(generation).await.expect("no failure").0, [1, 2, 3]);
    // At once: its place was free before its last token was told.
    drop(setup.engine.submit(request(0, 1)).expect("room again"));
    let (ids, _) = collect(unread).await.expect("all of it waited");
    assert_eq!(ids, [1, 2, 3, 4, 5]);
}

fn request_at(place: gridwork_engine::Place) -> GenerationRequest {
    GenerationRequest {
        place: place.into(),
        ..request(0, 5)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_of_another_version_or_with_too_small_a_cache_is_refused_with_the_reason() {
    let setup = start(|_| ());
    std::mem::forget(serve(
        CountingShard {
            protocol_version: PROTOCOL_VERSION + 1,
            ..Default::default()
        },
        &setup.socket,
    ));
    assert!(matches!(
        setup.engine.ready().await,
        Err(StartError::Version { .. })
    ));

    let setup = start(|_| ());
    std::mem::forget(serve(
        CountingShard {
            num_blocks: 2,
            ..Default::default()
        },
        &setup.socket,
    ));
    let error = setup
        .engine
        .ready()
        .await
        .expect_err("too small")
        .to_string();
    assert!(
        error.contains("--max-total-tokens") && error.contains("32 tokens"),
        "{error}"
    );

    let setup = start(|config| config.max_total_tokens = Some(1000));
    std::mem::forget(serve(CountingShard::default(), &setup.socket));
    let error = setup
        .engine
        .ready()
        .await
        .expect_err("too long")
        .to_string();
    assert!(error.contains("256"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn speculation_that_the_shard_cannot_verify_is_refused_with_the_reason() {
    let setup = start(|config| config.speculate = 3);
    std::mem::forget(serve(CountingShard::default(), &setup.socket));
    let error = setup.engine.ready().await.expect_err("no drafts");
    assert!(
        matches!(error, StartError::NoDrafts { speculate: 3, .. }),
        "{error}"
    );
    assert!(error.to_string().contains("remove --speculate"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_never_comes_is_given_up_on() {
    let setup = start(|config| config.startup_timeout = Duration::from_millis(200));
    assert!(matches!(
        setup.engine.ready().await,
        Err(StartError::Timeout { .. })
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_takes_too_long_is_told_and_its_late_answer_is_taken() {
    let setup = start(|config| config.shard_timeout = Duration::from_secs(1));
    std::mem::forget(serve(
        CountingShard {
            step_time: Duration::from_secs(6),
            ..Default::default()
        },
        &setup.socket,
    ));
    setup.engine.ready().await.expect("ready");
    let vitals = setup.engine.vitals();
    assert!(vitals.hang().is_none());
    let generation = tokio::spawn(collect(
        setup.engine.submit(request(0, 1)).expect("admitted"),
    ));
    while vitals.hang().is_none() {
        assert!(!generation.is_finished(), "the hang was not noticed");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(!setup.engine.is_healthy());
    let reason = vitals.hang().expect("a hang").reason;
    assert!(
        reason.contains("has not answered a step of 1 tokens"),
        "{reason}"
    );
    assert!(
        vitals.silent_for() < Duration::from_secs(5),
        "the task runs"
    );
    let (ids, _) = generation.await.expect("joined").expect("no failure");
    assert_eq!(ids, [1]);
    assert!(setup.engine.is_healthy());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_given_up_ends_with_the_reason_though_no_shard_is_there() {
    let setup = start(|_| ());
    let slow = CountingShard {
        step_time: Duration::from_millis(20),
        ..Default::default()
    };
    let shard = serve(slow, &setup.socket);
    setup.engine.ready().await.expect("ready");
    let generation = setup.engine.submit(request(0, 100)).expect("admitted");
    shard.shutdown_background();
    setup.engine.vitals().give_up("no memory".into());
    assert_eq!(
        setup.engine.submit(request(0, 1)).err(),
        Some(SubmitError::Draining)
    );
    assert_eq!(
        collect(generation).await.expect_err("given up"),
        GenerationError::GivenUp("no memory".into())
    );
    setup.engine.drain().await;
}
