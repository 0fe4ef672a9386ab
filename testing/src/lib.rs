//! A fake shard, for the tests of engine and launcher and for benchmarks. It has no model: a test says what it answers.

mod sequences;
mod shard;

pub use sequences::{FakeSequence, FakeSequences};
pub use shard::{FakeShard, Serving};
