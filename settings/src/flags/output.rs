//! Flags of logs and traces.

use clap::builder::BoolishValueParser;
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::values;

/// Logs and traces. Read by every process.
#[derive(Debug, Clone, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[command(next_help_heading = "Output")]
pub struct Output {
    /// Minimum severity of log lines
    #[arg(long, env = "LOG_LEVEL", default_value = "info", ignore_case = true)]
    pub log_level: LogLevel,

    /// Log one line for each finished request, with its counts and times and without any text
    #[arg(long, env = "LOG_REQUESTS", default_value = "false", default_missing_value = "true", num_args = 0..=1,
          require_equals = true, hide_possible_values = true, hide_default_value = true, value_name = "BOOL",
          action = clap::ArgAction::Set, value_parser = BoolishValueParser::new())]
    pub log_requests: bool,

    /// OpenTelemetry collector to send traces and metrics to (gRPC, unencrypted), for example http://localhost:4317
    #[arg(long, env = "OTLP_ENDPOINT", value_name = "URL", value_parser = values::collector)]
    pub otlp_endpoint: Option<String>,

    /// Share of the requests without a `traceparent` that are traced, from 0 to 1
    /// [default: as OTEL_TRACES_SAMPLER says, else 1]
    #[arg(long, env = "OTLP_SAMPLING_RATIO", value_name = "RATIO", value_parser = values::ratio)]
    pub otlp_sampling_ratio: Option<f64>,

    /// Send metrics to the collector, too; false: traces alone
    #[arg(long, env = "OTLP_METRICS", default_value = "true", default_missing_value = "true", num_args = 0..=1,
          require_equals = true, hide_possible_values = true, action = clap::ArgAction::Set, value_name = "BOOL",
          value_parser = BoolishValueParser::new())]
    pub otlp_metrics: bool,

    /// Write prompts, as the model gets them, and answers into traces: whoever reads the traces reads them
    #[arg(long, env = "OTLP_RECORD_CONTENT", default_value = "false", default_missing_value = "true", num_args = 0..=1,
          require_equals = true, hide_possible_values = true, hide_default_value = true, value_name = "BOOL",
          action = clap::ArgAction::Set, value_parser = BoolishValueParser::new())]
    pub otlp_record_content: bool,

    /// Name of the service in traces and metrics [default: gridwork.router and gridwork.shard]
    #[arg(long, env = "OTLP_SERVICE_NAME", value_name = "NAME")]
    pub otlp_service_name: Option<String>,
}

/// Form of the log, and the report of `--env`. Read by the launcher.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Output")]
pub struct Report {
    /// Write each log line as one JSON object
    #[arg(long, env = "JSON_OUTPUT", default_value = "false", default_missing_value = "true", num_args = 0..=1,
          require_equals = true, hide_possible_values = true, hide_default_value = true, value_name = "BOOL",
          value_parser = BoolishValueParser::new())]
    pub json_output: bool,

    /// Print versions, platform and GPU, then end
    #[arg(long, short)]
    pub env: bool,
}

/// Severity of a log line, least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    Trace,
    Debug,
    Info,
    #[value(alias = "warning")]
    Warn,
    Error,
}

impl LogLevel {
    /// Reads a name in any case, `warning` included.
    pub fn from_name(name: &str) -> Option<Self> {
        <Self as ValueEnum>::from_str(name, true).ok()
    }

    /// Name in the filters of `tracing-subscriber`.
    pub fn name(self) -> &'static str {
        match self {
            LogLevel::Error => "error",
            LogLevel::Warn => "warn",
            LogLevel::Info => "info",
            LogLevel::Debug => "debug",
            LogLevel::Trace => "trace",
        }
    }
}
