//! Tests of making batches.

use gridwork_proto::v1::encode_request::Output;
use tokio::sync::oneshot::Receiver;

use super::*;

type Reply = Receiver<Result<Encoded, GenerationError>>;

const LIMITS: BatchLimits = BatchLimits {
    max_tokens: 10,
    max_sequences: 3,
};

fn add(queue: &mut Queue, length: usize, output: Output) -> Reply {
    let (answer, reply) = oneshot::channel();
    queue.push(Waiting {
        sequence: EncodeSequence {
            token_ids: vec![length as u32; length],
            ..Default::default()
        },
        wanted: output.into(),
        answer,
        tenant: None,
        turn: 0,
        since: Instant::now(),
        deaths: 0,
    });
    reply
}

fn add_all(queue: &mut Queue, lengths: &[usize]) -> Vec<Reply> {
    lengths
        .iter()
        .map(|&length| add(queue, length, Output::Vector))
        .collect()
}

fn lengths(batch: &Batch) -> Vec<u32> {
    batch.request().lengths
}

fn next(queue: &mut Queue) -> Vec<u32> {
    queue
        .next_batch(LIMITS, Instant::now())
        .map_or(vec![], |batch| lengths(&batch))
}

#[test]
fn a_batch_is_filled_in_order_up_to_its_tokens() {
    let mut queue = Queue::default();
    let _replies = add_all(&mut queue, &[4, 5, 3, 1]);
    // The sequence of length 1 would fit, but must not overtake the one of length 3.
    assert_eq!(next(&mut queue), [5, 4]);
    assert_eq!(next(&mut queue), [3, 1]);
    assert_eq!(next(&mut queue), [0; 0]);
}

#[test]
fn a_batch_has_no_more_sequences_than_allowed() {
    let mut queue = Queue::default();
    let _replies = add_all(&mut queue, &[1, 2, 1, 1]);
    assert_eq!(next(&mut queue), [2, 1, 1]);
    assert_eq!(next(&mut queue), [1]);
}

#[test]
fn a_sequence_above_the_limit_is_computed_alone() {
    let mut queue = Queue::default();
    let _replies = add_all(&mut queue, &[25, 1]);
    assert_eq!(next(&mut queue), [25]);
    assert_eq!(next(&mut queue), [1]);
}

#[test]
fn other_outputs_wait_for_a_batch_of_their_own() {
    let mut queue = Queue::default();
    let _a = add(&mut queue, 1, Output::Vector);
    let _b = add(&mut queue, 2, Output::TokenVectors);
    let _c = add(&mut queue, 3, Output::Vector);
    assert_eq!(next(&mut queue), [3, 1]);
    assert_eq!(next(&mut queue), [2]);
}

#[test]
fn sequences_of_disconnected_clients_are_dropped() {
    let mut queue = Queue::default();
    let mut replies = add_all(&mut queue, &[1, 2, 3]);
    drop(replies.remove(1));
    assert_eq!(next(&mut queue), [3, 1]);
}

#[test]
fn after_a_death_sequences_are_retried_first_and_alone() {
    let mut queue = Queue::default();
    let mut replies = add_all(&mut queue, &[1, 2]);
    let batch = queue.next_batch(LIMITS, Instant::now()).expect("a batch");
    replies.extend(add_all(&mut queue, &[3]));
    queue.take_back(batch);
    assert!(queue.begins_with_suspect());
    assert_eq!(next(&mut queue), [2]);
    assert_eq!(next(&mut queue), [1]);
    assert!(!queue.begins_with_suspect());
    assert_eq!(next(&mut queue), [3]);
}

#[test]
fn a_sequence_with_repeated_deaths_fails() {
    let mut queue = Queue::default();
    let mut reply = add(&mut queue, 1, Output::Vector);
    for _ in 0..DEATHS_UNTIL_FAILED {
        let batch = queue.next_batch(LIMITS, Instant::now()).expect("a batch");
        assert!(reply.try_recv().is_err());
        queue.take_back(batch);
    }
    assert_eq!(
        reply.try_recv(),
        Ok(Err(GenerationError::ShardCrash {
            deaths: DEATHS_UNTIL_FAILED
        }))
    );
    assert_eq!(queue.len(), 0);
}

#[test]
fn a_sequence_that_waits_too_long_fails() {
    let mut queue = Queue::default();
    let mut reply = add(&mut queue, 1, Output::Vector);
    let limit = Duration::from_secs(5);
    queue.expire(limit, Instant::now());
    assert!(reply.try_recv().is_err());
    queue.expire(limit, Instant::now() + Duration::from_secs(6));
    assert_eq!(
        reply.try_recv(),
        Ok(Err(GenerationError::QueueTimeout { limit_s: 5 }))
    );
}

#[test]
fn a_request_has_the_types_and_positions_of_the_whole_batch() {
    let (answer, _reply) = oneshot::channel();
    let member = |sequence, answer| Waiting {
        sequence,
        wanted: Wanted {
            output: Output::Tokens,
            top_n: 4,
        },
        answer,
        tenant: None,
        turn: 0,
        since: Instant::now(),
        deaths: 0,
    };
    let first = EncodeSequence {
        token_ids: vec![7, 8],
        token_type_ids: vec![],
        positions: vec![1],
        ..Default::default()
    };
    let second = EncodeSequence {
        token_ids: vec![9, 6],
        token_type_ids: vec![0, 1],
        positions: vec![0, 1],
        prompt_length: 1,
    };
    let batch = Batch {
        members: vec![member(first, answer), member(second, oneshot::channel().0)],
        started: Instant::now(),
    };
    let request = batch.request();
    assert_eq!(request.token_ids, [7, 8, 9, 6]);
    assert_eq!(request.token_type_ids, [0, 0, 0, 1]);
    assert_eq!(request.positions, [1, 2, 3]);
    assert_eq!(request.top_n, 4);
    assert_eq!(request.prompt_lengths, [0, 1]);
}
