//! Metrics in Prometheus' format: the recorder, its buckets, and what each metric means.

use std::sync::OnceLock;
use std::time::Duration;

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

/// How often histograms are drained of what was recorded; without it they would grow until the next scrape.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Upper bounds of durations: 0.5 ms, and doubled up to 262 s.
fn second_buckets() -> Vec<f64> {
    (0..20).map(|i| 0.0005 * f64::from(1_u32 << i)).collect()
}

/// Upper bounds of numbers of tokens and sequences: powers of two up to 131,072.
fn count_buckets() -> Vec<f64> {
    (0..18).map(|i| f64::from(1_u32 << i)).collect()
}

/// Installs the recorder of this process, and returns what renders it. Further calls return the same.
///
/// To be called before anything is recorded: handles that were made before stay without effect.
pub fn install() -> PrometheusHandle {
    static INSTALLED: OnceLock<PrometheusHandle> = OnceLock::new();
    INSTALLED
        .get_or_init(|| {
            let handle = builder()
                .and_then(PrometheusBuilder::install_recorder)
                .inspect(|_| describe())
                .unwrap_or_else(|error| {
                    tracing::error!("metrics are not recorded: {error}");
                    PrometheusBuilder::new().build_recorder().handle()
                });
            keep_up(handle.clone());
            handle
        })
        .clone()
}

fn builder() -> Result<PrometheusBuilder, BuildError> {
    PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &second_buckets())?
        .set_buckets_for_metric(Matcher::Suffix("_tokens".into()), &count_buckets())?
        .set_buckets_for_metric(Matcher::Suffix("_sequences".into()), &count_buckets())
}

/// On a thread of its own, since the recorder outlives any runtime of a test.
fn keep_up(handle: PrometheusHandle) {
    let thread = std::thread::Builder::new()
        .name("metrics-upkeep".to_owned())
        .spawn(move || {
            loop {
                std::thread::sleep(UPKEEP_INTERVAL);
                handle.run_upkeep();
            }
        });
    if let Err(error) = thread {
        tracing::error!(
            "metrics are only drained when they are read: no thread can be started: {error}"
        );
    }
}

fn describe() {
    for (name, help) in COUNTERS {
        describe_counter!(name, Unit::Count, help);
    }
    for (name, help) in GAUGES {
        describe_gauge!(name, Unit::Count, help);
    }
    for (name, help) in HISTOGRAMS {
        let unit = if name.ends_with("_seconds") {
            Unit::Seconds
        } else {
            Unit::Count
        };
        describe_histogram!(name, unit, help);
    }
}

const COUNTERS: [(&str, &str); 17] = [
    ("gridwork_requests_total", "Requests received, by route"),
    (
        "gridwork_request_success_total",
        "Requests answered in full",
    ),
    (
        "gridwork_request_failures_total",
        "Requests refused or failed, by kind",
    ),
    (
        "gridwork_requests_aborted_total",
        "Generations whose client went away before the end",
    ),
    (
        "gridwork_generation_failures_total",
        "Generations that failed after they were admitted, by kind",
    ),
    (
        "gridwork_prompt_tokens_total",
        "Prompt tokens of the admitted generations",
    ),
    (
        "gridwork_cached_prompt_tokens_total",
        "Prompt tokens of started generations that were in the prefix cache",
    ),
    (
        "gridwork_prefix_cache_lookup_tokens_total",
        "Tokens of sequences that were looked up in the prefix cache",
    ),
    (
        "gridwork_prefix_cache_hit_tokens_total",
        "Those of them that were found there",
    ),
    (
        "gridwork_prefix_cache_evicted_blocks_total",
        "Blocks that the prefix cache gave up for others",
    ),
    ("gridwork_generated_tokens_total", "Tokens generated"),
    (
        "gridwork_speculation_drafted_tokens_total",
        "Tokens that were guessed ahead and computed",
    ),
    (
        "gridwork_speculation_accepted_tokens_total",
        "Those of them that were generated",
    ),
    ("gridwork_steps_total", "Steps that the shard has computed"),
    (
        "gridwork_preemptions_total",
        "Sequences put back into the queue because the cache was full",
    ),
    (
        "gridwork_shard_restarts_total",
        "Times that the shard was lost and connected to again",
    ),
    (
        "gridwork_scheduler_integrity_violations_total",
        "Times that the scheduler found its own books wrong; anything but 0 is a bug",
    ),
];

const GAUGES: [(&str, &str); 6] = [
    (
        "gridwork_connections",
        "Connections of clients that are open",
    ),
    ("gridwork_queue_size", "Generations that wait to be started"),
    (
        "gridwork_running_sequences",
        "Sequences that are being computed",
    ),
    (
        "gridwork_cache_blocks_used",
        "Blocks of the cache that hold running sequences",
    ),
    ("gridwork_cache_blocks_total", "Blocks of the cache"),
    (
        "gridwork_prefix_cache_blocks",
        "Full blocks that can be found by their tokens, in use or not",
    ),
];

const HISTOGRAMS: [(&str, &str); 14] = [
    (
        "gridwork_request_duration_seconds",
        "From the request to the end of its answer",
    ),
    (
        "gridwork_request_validation_seconds",
        "Tokenizing and checking a prompt, waiting for a worker included",
    ),
    (
        "gridwork_request_queue_seconds",
        "From admission to the first step",
    ),
    (
        "gridwork_request_inference_seconds",
        "From the first step to the last token",
    ),
    (
        "gridwork_time_to_first_token_seconds",
        "From admission to the first token",
    ),
    (
        "gridwork_time_per_output_token_seconds",
        "Mean time between the tokens of a generation, after its first",
    ),
    ("gridwork_request_input_tokens", "Tokens of a prompt"),
    (
        "gridwork_request_max_new_tokens",
        "Tokens that a request may generate",
    ),
    (
        "gridwork_request_generated_tokens",
        "Tokens that a request has generated",
    ),
    ("gridwork_step_sequences", "Sequences of a step"),
    ("gridwork_step_tokens", "Tokens that a step computes"),
    (
        "gridwork_step_seconds",
        "A step, from the router's sending to its receiving",
    ),
    (
        "gridwork_step_forward_seconds",
        "The model's part of a step, as the shard measures it",
    ),
    (
        "gridwork_step_sample_seconds",
        "The sampling part of a step, as the shard measures it",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_recorded_can_be_read_with_its_meaning() {
        let handle = install();
        metrics::histogram!("gridwork_request_duration_seconds").record(0.75);
        metrics::histogram!("gridwork_step_sequences").record(3.0);
        metrics::counter!("gridwork_request_success_total").increment(1);
        let text = install().render();
        assert_eq!(text.is_empty(), handle.render().is_empty());
        for line in [
            "# HELP gridwork_request_duration_seconds From the request to the end of its answer",
            "# TYPE gridwork_request_duration_seconds histogram",
            "gridwork_request_duration_seconds_bucket{le=\"0.512\"} 0",
            "gridwork_request_duration_seconds_bucket{le=\"1.024\"} 1",
            "gridwork_step_sequences_bucket{le=\"131072\"} 1",
            "# TYPE gridwork_request_success_total counter",
        ] {
            assert!(
                text.lines().any(|found| found == line),
                "no `{line}` in:\n{text}"
            );
        }
    }

    #[test]
    fn buckets_reach_from_half_a_millisecond_to_minutes() {
        assert_eq!(second_buckets()[0], 0.0005);
        assert!((260.0..300.0).contains(second_buckets().last().expect("a bucket")));
        assert_eq!(count_buckets().last(), Some(&131_072.0));
    }

    #[test]
    fn every_metric_is_documented() {
        let documentation = include_str!("../../../docs/metrics.md");
        for (name, _) in COUNTERS.iter().chain(&GAUGES).chain(&HISTOGRAMS) {
            let row = documentation.lines().find(|line| {
                let rest = line
                    .strip_prefix("| `")
                    .and_then(|line| line.strip_prefix(name));
                rest.is_some_and(|rest| rest.starts_with(['`', '{']))
            });
            assert!(row.is_some(), "{name} is not in docs/metrics.md");
        }
    }
}
