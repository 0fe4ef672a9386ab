//! Logs, metrics and traces of the router.

pub mod logs;
pub mod metrics;
pub mod request_log;
pub mod telemetry;
pub mod vllm_names;
