//! The engine over a real gRPC stream, with a shard that counts: the token after `n` is `n + 1`.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use gridwork_engine::{
    Engine, EngineConfig, Event, FinishReason, GenerationError, GenerationRequest, ShardAddress,
    StartError, SubmitError,
};
use gridwork_proto::PROTOCOL_VERSION;
use gridwork_testing::{FakeShard, Serving};
use tokenizers::Tokenizer;
use tokenizers::models::wordlevel::WordLevel;

const CONTEXT_TOKENS: u32 = 256;

/// A shard that counts, and takes `step_ms` for each step.
fn counting_shard(step_ms: u64) -> FakeShard {
    let mut shard = FakeShard::generating(|sequence| sequence.last_token + 1);
    shard.info.max_context_tokens = CONTEXT_TOKENS;
    shard.warmup.num_blocks = 64;
    shard.step_time = Duration::from_millis(step_ms);
    shard
}

struct Setup {
    folder: tempfile::TempDir,
    engine: Engine,
}

impl Setup {
    fn serve(&self, shard: FakeShard) -> Serving {
        shard.serve_at(&socket(&self.folder))
    }
}

fn socket(folder: &tempfile::TempDir) -> std::path::PathBuf {
    folder.path().join("shard")
}

fn config(socket: &Path) -> EngineConfig {
    EngineConfig {
        shard: ShardAddress::Unix(socket.to_owned()),
        block_size_tokens: 16,
        max_batch_prefill_tokens: 64,
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
    let mut config = config(&socket(&folder));
    adapt(&mut config);
    let engine = Engine::start(config, Arc::new(Tokenizer::new(WordLevel::default())));
    Setup { folder, engine }
}

fn request(first: u32, max_new_tokens: u32) -> GenerationRequest {
    GenerationRequest::greedy(vec![first], max_new_tokens)
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
async fn concurrent_requests_each_get_their_own_tokens() {
    let setup = start(|_| ());
    assert_eq!(
        setup.engine.submit(request(1, 1)).err(),
        Some(SubmitError::NotReady)
    );
    let _shard = setup.serve(counting_shard(0));
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
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_continues_after_a_shard_restart() {
    let setup = start(|_| ());
    let mut shard = Some(setup.serve(counting_shard(5)));
    let mut restarted = None;
    setup.engine.ready().await.expect("ready");
    let mut generation = setup.engine.submit(request(0, 100)).expect("admitted");
    let mut ids = Vec::new();
    while let Some(event) = generation.next().await {
        if let Event::Token(token) = event.expect("no failure") {
            ids.push(token.id);
        }
        if ids.len() == 20 && shard.take().is_some() {
            restarted = Some(setup.serve(counting_shard(5)));
        }
    }
    assert!(restarted.is_some());
    assert_eq!(ids, (1..=100).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_generation_returns_its_permit_and_drain_waits_for_others() {
    let setup = start(|config| config.max_concurrent_requests = 2);
    let _shard = setup.serve(counting_shard(2));
    setup.engine.ready().await.expect("ready");
    let kept = setup.engine.submit(request(0, 100)).expect("admitted");
    drop(setup.engine.submit(request(0, 100)).expect("admitted"));
    // The permit is returned as soon as the engine's task has handled the abort.
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
async fn an_ended_generation_returns_its_permit_before_it_is_read() {
    let setup = start(|config| config.max_concurrent_requests = 1);
    let _shard = setup.serve(counting_shard(0));
    setup.engine.ready().await.expect("ready");
    let unread = setup.engine.submit(request(0, 5)).expect("admitted");
    let mut reserved = loop {
        match setup.engine.reserve(None) {
            Ok(permit) => break request_with(permit),
            Err(SubmitError::Overloaded { .. }) => {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            Err(error) => panic!("{error}"),
        }
    };
    // The only permit is reserved, and a clone of the request has none.
    assert!(setup.engine.submit(request(0, 5)).is_err());
    assert!(setup.engine.submit(reserved.clone()).is_err());
    reserved.max_new_tokens = 3;
    let generation = setup.engine.submit(reserved).expect("its own permit");
    assert_eq!(collect(generation).await.expect("no failure").0, [1, 2, 3]);
    // The permit was returned before the last token was sent.
    drop(setup.engine.submit(request(0, 1)).expect("room again"));
    let (ids, _) = collect(unread).await.expect("unread tokens are kept");
    assert_eq!(ids, [1, 2, 3, 4, 5]);
}

fn request_with(permit: gridwork_engine::Permit) -> GenerationRequest {
    GenerationRequest {
        permit: permit.into(),
        ..request(0, 5)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_protocol_version_and_too_small_caches_are_refused() {
    let setup = start(|_| ());
    let mut other_version = counting_shard(0);
    other_version.info.protocol_version = PROTOCOL_VERSION + 1;
    let _shard = setup.serve(other_version);
    assert!(matches!(
        setup.engine.ready().await,
        Err(StartError::Version { .. })
    ));

    let setup = start(|_| ());
    let mut small = counting_shard(0);
    small.warmup.num_blocks = 2;
    let _shard = setup.serve(small);
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
    let _shard = setup.serve(counting_shard(0));
    let error = setup
        .engine
        .ready()
        .await
        .expect_err("too long")
        .to_string();
    assert!(error.contains("256"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn speculation_without_verification_is_refused() {
    let setup = start(|config| config.speculate = 3);
    let _shard = setup.serve(counting_shard(0));
    let error = setup.engine.ready().await.expect_err("no drafts");
    assert!(
        matches!(error, StartError::NoDrafts { speculate: 3, .. }),
        "{error}"
    );
    assert!(error.to_string().contains("remove --speculate"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_never_starts_times_out() {
    let setup = start(|config| config.startup_timeout = Duration::from_millis(200));
    assert!(matches!(
        setup.engine.ready().await,
        Err(StartError::Timeout { .. })
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overdue_step_is_reported_and_its_answer_still_used() {
    let setup = start(|config| config.shard_timeout = Duration::from_secs(1));
    let _shard = setup.serve(counting_shard(6000));
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
async fn giving_up_fails_requests_without_a_shard() {
    let setup = start(|_| ());
    let shard = setup.serve(counting_shard(20));
    setup.engine.ready().await.expect("ready");
    let generation = setup.engine.submit(request(0, 100)).expect("admitted");
    drop(shard);
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
