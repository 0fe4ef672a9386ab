//! An encoder over a real gRPC connection, with a shard that sums: a sequence's vector is its length and its tokens'
//! sum.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::join_all;
use gridwork_engine::{
    EncodeError, EncodeSequence, Encoder, EncoderConfig, Engine, EngineConfig, GenerationError,
    Output, ShardAddress, StartError, SubmitError,
};
use gridwork_proto::v1::{EncodeRequest, EncodeResponse, Encoding, Task};
use gridwork_testing::{FakeShard, Serving};
use tokenizers::Tokenizer;
use tokenizers::models::wordlevel::WordLevel;
use tokio::sync::Semaphore;
use tonic::Status;

/// A batch with this token breaks the connection.
const CRASH: u32 = 666;
/// A sequence with this token has an error of its own.
const BAD: u32 = 1_013;

#[derive(Clone)]
struct SummingShard {
    task: Task,
    /// Lengths of the sequences of each batch.
    batches: Arc<Mutex<Vec<Vec<u32>>>>,
    /// Permits for the batches that may be answered.
    gate: Arc<Semaphore>,
}

impl SummingShard {
    fn new(task: Task) -> Self {
        SummingShard {
            task,
            batches: Arc::default(),
            gate: Arc::new(Semaphore::new(Semaphore::MAX_PERMITS)),
        }
    }

    /// Answers no batch until the gate is given permits.
    fn closed() -> Self {
        SummingShard {
            gate: Arc::new(Semaphore::new(0)),
            ..Self::new(Task::Embed)
        }
    }

    async fn encode(self, request: EncodeRequest) -> Result<EncodeResponse, Status> {
        self.batches
            .lock()
            .expect("no panic")
            .push(request.lengths.clone());
        match self.gate.acquire().await {
            Ok(permit) => permit.forget(),
            Err(_closed) => return Err(Status::unavailable("the shard is closing")),
        }
        if request.token_ids.contains(&CRASH) {
            return Err(Status::unavailable("the shard has died"));
        }
        let mut left = &request.token_ids[..];
        let mut encodings = Vec::new();
        for &length in &request.lengths {
            let (sequence, rest) = left.split_at(length as usize);
            left = rest;
            encodings.push(Encoding {
                values: vec![length as f32, sequence.iter().sum::<u32>() as f32],
                error: if sequence.contains(&BAD) {
                    "not finite".into()
                } else {
                    String::new()
                },
                ..Default::default()
            });
        }
        Ok(EncodeResponse {
            encodings,
            forward_us: 1,
        })
    }
}

fn serve(folder: &Path, shard: &SummingShard) -> Serving {
    let encoding = shard.clone();
    FakeShard::encoding(shard.task, move |batch| encoding.clone().encode(batch))
        .serve_at(&folder.join("shard"))
}

fn config(socket: &Path) -> EncoderConfig {
    EncoderConfig {
        shard: ShardAddress::Unix(socket.to_owned()),
        max_batch_tokens: 16,
        max_batch_sequences: 8,
        max_concurrent_requests: 100,
        queue_timeout: Duration::from_secs(60),
        startup_timeout: Duration::from_secs(60),
        shard_timeout: Duration::from_secs(60),
        speculate: 0,
    }
}

async fn started(served: &Serving) -> Encoder {
    let encoder = Encoder::start(config(&served.socket));
    encoder.ready().await.expect("ready");
    encoder
}

fn sequence(token_ids: &[u32]) -> EncodeSequence {
    EncodeSequence {
        token_ids: token_ids.to_vec(),
        ..Default::default()
    }
}

async fn sums(encoder: &Encoder, sequences: &[&[u32]]) -> Result<Vec<Vec<f32>>, EncodeError> {
    let sequences = sequences.iter().map(|ids| sequence(ids)).collect();
    let encoded = encoder.encode(sequences, Output::Vector.into()).await?;
    Ok(encoded.into_iter().map(|one| one.values).collect())
}

async fn until(mut condition: impl FnMut() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn concurrent_requests_each_get_their_results_in_order() {
    let folder = tempfile::tempdir().expect("a folder");
    let shard = SummingShard::new(Task::Embed);
    let served = serve(folder.path(), &shard);
    let encoder = started(&served).await;
    let requests = (1..60_u32).map(|i| {
        let encoder = &encoder;
        async move {
            let (long, short) = (vec![i; (i % 7 + 1) as usize], [i + 1, 1]);
            let got = sums(encoder, &[&long, &short]).await.expect("vectors");
            let length = long.len() as f32;
            assert_eq!(got, [[length, length * i as f32], [2.0, i as f32 + 2.0]]);
        }
    });
    join_all(requests).await;
    let batches = shard.batches.lock().expect("no panic");
    assert!(
        batches
            .iter()
            .all(|lengths| lengths.iter().sum::<u32>() <= 16)
    );
    assert!(batches.iter().any(|lengths| lengths.len() > 2));
}

#[tokio::test]
async fn at_most_two_batches_are_in_flight() {
    let folder = tempfile::tempdir().expect("a folder");
    let shard = SummingShard::closed();
    let served = serve(folder.path(), &shard);
    let encoder = started(&served).await;
    let sequences: Vec<Vec<u32>> = (0..5).map(|i| vec![i; 16]).collect();
    let views: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
    let open = async {
        until(|| shard.batches.lock().expect("no panic").len() == 2).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(shard.batches.lock().expect("no panic").len(), 2);
        shard.gate.add_permits(5);
    };
    let (got, ()) = tokio::join!(sums(&encoder, &views), open);
    assert_eq!(got.expect("vectors").len(), 5);
}

#[tokio::test]
async fn a_lost_batch_is_computed_after_a_restart() {
    let folder = tempfile::tempdir().expect("a folder");
    let shard = SummingShard::closed();
    let served = serve(folder.path(), &shard);
    let encoder = started(&served).await;
    let restart = async {
        until(|| !shard.batches.lock().expect("no panic").is_empty()).await;
        drop(served);
        let again = serve(folder.path(), &SummingShard::new(Task::Embed));
        shard.gate.close();
        again
    };
    let (got, _again) = tokio::join!(sums(&encoder, &[&[1, 2], &[3]]), restart);
    assert_eq!(got.expect("vectors"), [[2.0, 3.0], [1.0, 3.0]]);
    assert!(encoder.is_healthy());
}

#[tokio::test]
async fn only_the_sequence_that_crashes_the_shard_fails() {
    let folder = tempfile::tempdir().expect("a folder");
    let shard = SummingShard::new(Task::Embed);
    let served = serve(folder.path(), &shard);
    let encoder = started(&served).await;
    let (killer, innocent) = tokio::join!(sums(&encoder, &[&[CRASH]]), sums(&encoder, &[&[5]]));
    assert_eq!(
        killer,
        Err(EncodeError::Failed(GenerationError::ShardCrash {
            deaths: 3
        }))
    );
    assert_eq!(innocent.expect("a vector"), [[1.0, 5.0]]);
}

#[tokio::test]
async fn a_failed_sequence_fails_its_own_request_only() {
    let folder = tempfile::tempdir().expect("a folder");
    let shard = SummingShard::new(Task::Embed);
    let served = serve(folder.path(), &shard);
    let encoder = started(&served).await;
    let (bad, good) = tokio::join!(sums(&encoder, &[&[1], &[BAD]]), sums(&encoder, &[&[4]]));
    assert_eq!(
        bad,
        Err(EncodeError::Failed(GenerationError::Shard(
            "not finite".into()
        )))
    );
    assert_eq!(good.expect("a vector"), [[1.0, 4.0]]);
}

#[tokio::test]
async fn concurrent_requests_are_limited_and_an_abort_returns_the_permit() {
    let folder = tempfile::tempdir().expect("a folder");
    let shard = SummingShard::closed();
    let served = serve(folder.path(), &shard);
    let encoder = Encoder::start(EncoderConfig {
        max_concurrent_requests: 1,
        ..config(&served.socket)
    });
    encoder.ready().await.expect("ready");
    let first = tokio::spawn({
        let encoder = encoder.clone();
        async move { sums(&encoder, &[&[1]]).await }
    });
    until(|| !shard.batches.lock().expect("no panic").is_empty()).await;
    assert!(matches!(
        sums(&encoder, &[&[2]]).await,
        Err(EncodeError::Submit(SubmitError::Overloaded {
            limit: 1,
            ..
        }))
    ));
    first.abort();
    let _ = first.await;
    shard.gate.add_permits(10);
    assert_eq!(sums(&encoder, &[&[3]]).await, Ok(vec![vec![1.0, 3.0]]));
}

#[tokio::test]
async fn speculation_is_refused_before_the_encoder_looks_ready() {
    let folder = tempfile::tempdir().expect("a folder");
    let shard = SummingShard::closed();
    let served = serve(folder.path(), &shard);
    let encoder = Encoder::start(EncoderConfig {
        speculate: 2,
        ..config(&served.socket)
    });
    let refusal = encoder.ready().await.expect_err("a refusal");
    assert!(
        matches!(refusal, StartError::NothingToDraft { speculate: 2, .. }),
        "{refusal}"
    );
    assert!(!encoder.is_healthy() && encoder.loaded().is_none());
}

#[tokio::test]
async fn drain_finishes_running_requests_and_admits_no_new_ones() {
    let folder = tempfile::tempdir().expect("a folder");
    let shard = SummingShard::closed();
    let served = serve(folder.path(), &shard);
    let encoder = started(&served).await;
    let running = tokio::spawn({
        let encoder = encoder.clone();
        async move { sums(&encoder, &[&[1]]).await }
    });
    until(|| !shard.batches.lock().expect("no panic").is_empty()).await;
    let draining = tokio::spawn({
        let encoder = encoder.clone();
        async move { encoder.drain().await }
    });
    until(|| encoder.is_draining()).await;
    assert_eq!(
        sums(&encoder, &[&[2]]).await,
        Err(EncodeError::Submit(SubmitError::Draining))
    );
    assert!(!draining.is_finished());
    shard.gate.add_permits(1);
    assert_eq!(running.await.expect("no panic"), Ok(vec![vec![1.0, 1.0]]));
    draining.await.expect("drained");
}

#[tokio::test]
async fn a_shard_for_another_task_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let generator = serve(folder.path(), &SummingShard::new(Task::Generate));
    let encoder = Encoder::start(config(&generator.socket));
    assert!(matches!(
        encoder.ready().await,
        Err(StartError::OtherTask {
            task: Task::Generate
        })
    ));
    drop(generator);

    let classifier = serve(folder.path(), &SummingShard::new(Task::Classify));
    let engine = Engine::start(
        EngineConfig {
            shard: ShardAddress::Unix(classifier.socket.clone()),
            block_size_tokens: 16,
            max_batch_prefill_tokens: 16,
            max_sequences: 4,
            max_total_tokens: None,
            max_batch_total_tokens: None,
            max_concurrent_requests: 4,
            queue_timeout: Duration::from_secs(60),
            prefix_cache: true,
            speculate: 0,
            startup_timeout: Duration::from_secs(60),
            shard_timeout: Duration::from_secs(60),
            more_eos_token_ids: Vec::new(),
        },
        Arc::new(Tokenizer::new(WordLevel::default())),
    );
    assert!(matches!(
        engine.ready().await,
        Err(StartError::OtherTask {
            task: Task::Classify
        })
    ));
}
