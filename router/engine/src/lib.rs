//! Everything between HTTP and the shard: scheduling, block accounting, the step stream, detokenizing and stopping.
//!
//! The crate knows nothing of HTTP and of model families. [`Engine::start`] connects to a shard; [`Engine::submit`]
//! admits a request and returns its stream of [`Event`]s. Dropping that stream frees everything the request held.

mod backlog;
#[cfg(feature = "bench")]
pub mod bench;
mod cache;
mod content;
pub mod encoder;
mod engine;
mod error;
mod lifecycle;
pub mod metrics;
mod permits;
mod request;
mod scheduler;
mod sequence;
mod shard;
mod shares;
mod tenant;
mod token_table;

pub use content::prompt_message;
pub use encoder::{EncodeError, EncodeSequence, Encoded, Encoder, EncoderConfig, Output, Wanted};
pub use engine::{Engine, EngineConfig, Generation, Limits, Ready};
pub use error::{GenerationError, StartError, SubmitError};
pub use permits::{Permit, ReservedPermit};
pub use request::*;
pub use shard::client::ShardAddress;
pub use shard::tokenizer::{ShardTokenizer, TokenizeError};
pub use shard::vitals::{Hang, Vitals};
pub use tenant::{Tenant, TenantLimits};
pub use token_table::TokenTable;
