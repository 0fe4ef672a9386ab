//! Logs, metrics and traces of the router.

pub mod logs;
pub mod metrics;
pub mod metrics_page;
pub mod telemetry;
