//! The flags, grouped by the programs that read them. Every flag is also an environment variable; flags and variables
//! keep the names of text-generation-inference.
//!
//! Four variables are not the flag in upper case: `GRIDWORK_HOSTNAME`, because container runtimes set `HOSTNAME` to
//! the container's name; `GRIDWORK_PROMETHEUS_PORT`, because Kubernetes sets `PROMETHEUS_PORT` where there is a service of
//! that name, to something that is no number; `GRIDWORK_SERVER` for `--server-command` and `GRIDWORK_ROUTER` for `--router-command`. `--env`
//! has none, because `ENV` is often set to something else, and `--parent-link` has none, because only a program gives it.

mod batching;
mod http;
mod legacy;
mod limits;
mod model;
mod output;
mod processes;
pub mod spellings;

pub use batching::{Batching, Memory};
pub use http::Http;
pub use legacy::{ALIASES, Alias, Effect, Legacy, OldNames};
pub use limits::RequestLimits;
pub use model::{Attention, Dtype, ModelImpl, ModelRun, ModelSource, Names, Quantize, Task};
pub use output::{LogLevel, Output, Report};
pub use processes::{Device, Processes, Timeouts};
