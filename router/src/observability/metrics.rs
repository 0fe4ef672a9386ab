//! Metrics in Prometheus' format: the router's own metrics, and the recorder of these and the engine's.
//! To add one of the router's, add a row here and record it where the value is known; `make docs` writes
//! `docs/metrics.md`.

use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use gridwork_engine::metric_functions;
use gridwork_engine::metrics::{Kind, Metric, Unit};
use metrics::{NoopRecorder, Recorder};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use metrics_util::layers::FanoutBuilder;

metric_functions! {
    /// The router's own metrics.
    pub const ROUTER_METRICS;
    connections() = gauge("gridwork_connections", Count, Requests,
        "Open connections of clients");
    certificate_end() = gauge("gridwork_tls_certificate_expiry_timestamp_seconds", Seconds, Server,
        "Time when the certificate of `--tls-cert` ends, seconds since 1970; 0 without TLS");
    requests(route) = counter("gridwork_requests_total", Count, Requests,
        "Requests received, by route; each is counted once");
    request_success() = counter("gridwork_request_success_total", Count, Requests,
        "Requests answered in full");
    request_failures(kind) = counter("gridwork_request_failures_total", Count, Requests,
        "Requests refused or failed, by kind");
    request_duration() = histogram("gridwork_request_duration_seconds", Latency, Requests,
        "From the request to the end of its answer, for successful requests");
    request_validation() = histogram("gridwork_request_validation_seconds", Seconds, Requests,
        "Tokenizing and checking a prompt, including the wait for a worker");
    request_input_tokens() = histogram("gridwork_request_input_tokens", Tokens, Requests,
        "Tokens of a prompt, after truncation");
    request_max_new_tokens() = histogram("gridwork_request_max_new_tokens", Tokens, Requests,
        "Maximum number of tokens that a request may generate");
    request_generated_tokens() = histogram("gridwork_request_generated_tokens", Tokens, Requests,
        "Tokens that a successful request has generated");
    build_info(version) = gauge("gridwork_build_info", Count, Server,
        "Always 1; the label is the server's version");
    shard_ready() = gauge("gridwork_shard_ready", Count, Server,
        "1 if the shard can compute now; 0 while it loads, hangs or is restarted");
    start_time() = gauge("process_start_time_seconds", Seconds, Server,
        "Time at which the router's process started, in seconds since 1970");
}

/// Every metric of this process.
pub fn declared() -> impl Iterator<Item = &'static Metric> {
    ROUTER_METRICS
        .iter()
        .chain(gridwork_engine::metrics::declared())
}

fn declared_as(name: &str) -> Option<&'static Metric> {
    declared().find(|metric| metric.name == name)
}

/// Description of a metric; empty for one that is not declared.
pub fn description_of(name: &str) -> &'static str {
    declared_as(name).map_or("", |metric| metric.description)
}

/// Upper bounds of the buckets of a histogram.
pub fn buckets_of(name: &str) -> Vec<f64> {
    buckets(declared_as(name).map_or(Unit::Count, |metric| metric.unit))
}

/// Interval at which histograms are drained. Without it they would grow until the next scrape.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Upper bounds of the buckets of durations: 0.5 ms, doubled up to 262 s.
fn second_buckets() -> Vec<f64> {
    (0..20).map(|i| 0.0005 * f64::from(1_u32 << i)).collect()
}

/// Upper bounds of the buckets of latencies: those of durations, and a value between any two. A quantile that
/// Prometheus interpolates is wrong by at most half, where it would be by as much again.
fn latency_buckets() -> Vec<f64> {
    let all = second_buckets()
        .into_iter()
        .flat_map(|bound| [bound, 1.5 * bound]);
    all.take(39).collect()
}

/// Upper bounds of the buckets of numbers of tokens and sequences: powers of two up to 131,072.
fn count_buckets() -> Vec<f64> {
    (0..18).map(|i| f64::from(1_u32 << i)).collect()
}

/// Installs the recorder of this process and returns the handle that renders it. Further calls return the same handle.
///
/// Call it before anything is recorded: metric handles made earlier have no effect.
pub fn install() -> PrometheusHandle {
    install_with(None::<NoopRecorder>)
}

/// [`install`], with what also gets everything that is recorded.
pub fn install_with(also: Option<impl Recorder + Sync + 'static>) -> PrometheusHandle {
    static INSTALLED: OnceLock<PrometheusHandle> = OnceLock::new();
    INSTALLED
        .get_or_init(|| {
            let handle = install_recorder(also).unwrap_or_else(|error| {
                tracing::error!("metrics are not recorded: {error}");
                PrometheusBuilder::new().build_recorder().handle()
            });
            keep_up(handle.clone());
            handle
        })
        .clone()
}

fn install_recorder(
    also: Option<impl Recorder + Sync + 'static>,
) -> Result<PrometheusHandle, Box<dyn std::error::Error>> {
    let page = builder()?.build_recorder();
    let handle = page.handle();
    match also {
        None => metrics::set_global_recorder(page)?,
        Some(also) => {
            let both = FanoutBuilder::default()
                .add_recorder(page)
                .add_recorder(also);
            metrics::set_global_recorder(both.build())?;
        }
    }
    describe();
    build_info(env!("CARGO_PKG_VERSION")).set(1.0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    start_time().set(now.unwrap_or_default().as_secs_f64());
    Ok(handle)
}

fn builder() -> Result<PrometheusBuilder, BuildError> {
    declared()
        .filter(|metric| metric.kind == Kind::histogram)
        .try_fold(PrometheusBuilder::new(), |builder, metric| {
            let name = Matcher::Full(metric.name.to_owned());
            builder.set_buckets_for_metric(name, &buckets(metric.unit))
        })
}

fn buckets(unit: Unit) -> Vec<f64> {
    match unit {
        Unit::Seconds => second_buckets(),
        Unit::Latency => latency_buckets(),
        Unit::Tokens | Unit::Sequences | Unit::Blocks | Unit::Count => count_buckets(),
    }
}

/// Drains the histograms on a thread of its own, since the recorder outlives the runtime of a test.
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

/// Describes every metric, and starts the counters without labels at 0.
fn describe() {
    for metric in declared() {
        let unit = match metric.unit {
            Unit::Seconds | Unit::Latency => metrics::Unit::Seconds,
            Unit::Tokens | Unit::Sequences | Unit::Blocks | Unit::Count => metrics::Unit::Count,
        };
        let (name, description) = (metric.name, metric.description);
        match metric.kind {
            Kind::counter => {
                metrics::describe_counter!(name, unit, description);
                if metric.labels.is_empty() {
                    metrics::counter!(name).increment(0);
                }
            }
            Kind::gauge => metrics::describe_gauge!(name, unit, description),
            Kind::histogram => metrics::describe_histogram!(name, unit, description),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recorded_metrics_are_rendered_with_their_descriptions() {
        let handle = install();
        request_duration().record(0.75);
        metrics::histogram!("gridwork_step_sequences").record(3.0);
        request_success().increment(1);
        let text = install().render();
        assert_eq!(text.is_empty(), handle.render().is_empty());
        for line in [
            "# HELP gridwork_request_duration_seconds From the request to the end of its answer, for successful requests",
            "# TYPE gridwork_request_duration_seconds histogram",
            "gridwork_request_duration_seconds_bucket{le=\"0.512\"} 0",
            "gridwork_request_duration_seconds_bucket{le=\"1.024\"} 1",
            "gridwork_step_sequences_bucket{le=\"131072\"} 1",
            "# TYPE gridwork_request_success_total counter",
            "gridwork_preemptions_total 0",
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
        assert_eq!(latency_buckets()[..4], [0.0005, 0.00075, 0.001, 0.0015]);
        assert_eq!(latency_buckets().last(), second_buckets().last());
    }
}
