//! Logs, metrics and traces of the router.

mod collector_warning;
pub mod logs;
pub mod metrics;
pub mod openmetrics;
pub mod otlp_metrics;
pub mod request_log;
pub mod telemetry;
pub mod vllm_names;
