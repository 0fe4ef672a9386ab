//! The command line of `gridwork`, composed of the groups of [`crate::flags`].

use clap::Parser;

use crate::flags::{
    Batching, Http, Legacy, Memory, ModelRun, ModelSource, Names, OldNames, Output, Processes,
    Report, RequestLimits, Timeouts,
};

/// Serves a Hugging Face Transformers model over HTTP.
///
/// Each group is read by the programs that its comment names. Groups with the same heading share a table of the help.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "gridwork",
    version,
    about = "Serves a Hugging Face Transformers model over HTTP.",
    long_about = None,
    after_help = "Every flag can also be given as the environment variable shown beside it.\n\n\
        Beside the server: gridwork serve MODEL, the same as --model-id MODEL; gridwork chat MODEL talks to a model; \
        gridwork bench MODEL measures it under load; gridwork check MODEL tries it; gridwork run-batch answers a file \
        of requests; gridwork completions SHELL prints a script for a shell; gridwork env prints what belongs in a \
        report of a problem.",
    max_term_width = 120
)]
pub struct Cli {
    #[command(flatten)]
    pub model: ModelSource,
    #[command(flatten)]
    pub names: Names,
    #[command(flatten)]
    pub run: ModelRun,
    #[command(flatten)]
    pub http: Http,
    #[command(flatten)]
    pub limits: RequestLimits,
    #[command(flatten)]
    pub batching: Batching,
    #[command(flatten)]
    pub memory: Memory,
    #[command(flatten)]
    pub processes: Processes,
    #[command(flatten)]
    pub timeouts: Timeouts,
    #[command(flatten)]
    pub output: Output,
    #[command(flatten)]
    pub report: Report,
    #[command(flatten)]
    pub old_names: OldNames,
    #[command(flatten)]
    pub legacy: Legacy,
    /// Flags of other servers that have no effect, with the reason.
    #[arg(skip)]
    pub warnings: Vec<String>,
}

#[cfg(test)]
#[path = "cli_tests.rs"]
mod tests;
