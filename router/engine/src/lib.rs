//! Everything between HTTP and the shard: scheduler, block accounting, the step stream, detokenizing and stopping.
//!
//! Knows nothing of HTTP and of model families. [`Engine::start`] connects to a shard; [`Engine::submit`] admits a
//! request and returns its stream of [`Event`]s, and dropping that stream frees what the request held.

mod backlog;
mod batch;
#[cfg(feature = "bench")]
pub mod bench;
mod blocks;
mod detokenizer;
pub mod encoder;
mod engine;
mod lengths;
mod metrics;
mod pace;
mod places;
mod prefix_tree;
mod queue;
mod request;
mod sampled;
mod scheduler;
mod sequence;
mod shard_client;
mod shard_tokenizer;
mod speculation;
mod stop;
mod suspects;
mod trace;
mod vitals;
mod watchdog;

pub use encoder::{EncodeError, EncodeSequence, Encoded, Encoder, EncoderConfig, Output, Wanted};
pub use engine::{Engine, EngineConfig, Generation, Limits, Ready, StartError};
pub use places::{Place, Reserved};
pub use request::*;
pub use shard_client::ShardAddress;
pub use shard_tokenizer::{ShardTokenizer, TokenizeError};
pub use vitals::{Hang, Vitals};
