//! Everything between HTTP and the shard: scheduler, block accounting, the step stream, detokenizing and stopping.
//!
//! Knows nothing of HTTP and of model families. [`Engine::start`] connects to a shard; [`Engine::submit`] admits a
//! request and returns its stream of [`Event`]s, and dropping that stream frees what the request held.

mod backlog;
#[cfg(feature = "bench")]
pub mod bench;
mod cache;
pub mod encoder;
mod engine;
mod metrics;
mod places;
mod request;
mod scheduler;
mod sequence;
mod shard;

pub use encoder::{EncodeError, EncodeSequence, Encoded, Encoder, EncoderConfig, Output, Wanted};
pub use engine::{Engine, EngineConfig, Generation, Limits, Ready, StartError};
pub use places::{Place, Reserved};
pub use request::*;
pub use shard::client::ShardAddress;
pub use shard::tokenizer::{ShardTokenizer, TokenizeError};
pub use shard::vitals::{Hang, Vitals};
