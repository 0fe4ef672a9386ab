//! The page of metrics in OpenMetrics' format, for scrapers that ask for it, with exemplars: the trace of the last request
//! in each bucket of a latency (<https://prometheus.io/docs/specs/om/open_metrics_spec/>).

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::observability::metrics::buckets_of;

/// Media type of the format.
pub const MEDIA_TYPE: &str = "application/openmetrics-text";

/// Its version and its character set, as a scraper is told.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A value that was recorded in a bucket, and the request that it belongs to.
#[derive(Debug, Clone)]
struct Exemplar {
    value: f64,
    trace_id: String,
    at: SystemTime,
}

/// Exemplars of a histogram's buckets, the last of which has no upper bound.
#[derive(Debug)]
struct Buckets {
    bounds: Vec<f64>,
    exemplars: Vec<Option<Exemplar>>,
}

impl Buckets {
    fn new(bounds: Vec<f64>) -> Self {
        let exemplars = vec![None; bounds.len() + 1];
        Self { bounds, exemplars }
    }

    fn note(&mut self, value: f64, trace_id: &str) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        if let Some(exemplar) = self.exemplars.get_mut(bucket) {
            *exemplar = Some(Exemplar {
                value,
                trace_id: trace_id.to_owned(),
                at: SystemTime::now(),
            });
        }
    }
}

type OfMetrics = HashMap<&'static str, Buckets>;

fn exemplars() -> MutexGuard<'static, OfMetrics> {
    static ALL: OnceLock<Mutex<OfMetrics>> = OnceLock::new();
    let all = ALL.get_or_init(Mutex::default);
    all.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Notes the trace of a request that a histogram has a value of. `metric`: name of a histogram without labels.
pub fn note(metric: &'static str, value: Duration, trace_id: &str) {
    let mut all = exemplars();
    let buckets = all
        .entry(metric)
        .or_insert_with(|| Buckets::new(buckets_of(metric)));
    buckets.note(value.as_secs_f64(), trace_id);
}

/// `page`, which is in Prometheus' text format, in OpenMetrics', with the exemplars so far.
pub fn of_page(page: &str) -> String {
    rewritten(page, &exemplars())
}

fn rewritten(page: &str, exemplars: &OfMetrics) -> String {
    let mut text = String::with_capacity(page.len() + page.len() / 8);
    let mut bucket = 0;
    for line in page.lines() {
        if line.is_empty() {
            continue;
        }
        if let Some(comment) = line.strip_prefix("# ") {
            text.push_str(&rewritten_comment(comment));
            continue;
        }
        text.push_str(line);
        let name = line.split(['{', ' ']).next().unwrap_or_default();
        if let Some(histogram) = name.strip_suffix("_bucket") {
            let found = exemplars.get(histogram).filter(|_| !has_other_labels(line));
            if let Some(Some(exemplar)) = found.and_then(|found| found.exemplars.get(bucket)) {
                let at = exemplar.at.duration_since(UNIX_EPOCH).unwrap_or_default();
                let _ = write!(
                    text,
                    " # {{trace_id=\"{}\"}} {} {:.3}",
                    exemplar.trace_id,
                    exemplar.value,
                    at.as_secs_f64()
                );
            }
            bucket += 1;
        } else {
            bucket = 0;
        }
        text.push('\n');
    }
    text.push_str("# EOF\n");
    text
}

/// True if a bucket has a label besides its bound: exemplars are kept for histograms without labels.
fn has_other_labels(line: &str) -> bool {
    !line
        .split_once('{')
        .is_some_and(|(_, rest)| rest.starts_with("le=\""))
}

/// `HELP` or `TYPE` of a metric. The family of a counter has no `_total` at its end, and a counter whose name has none is of
/// unknown type.
fn rewritten_comment(comment: &str) -> String {
    let mut words = comment.splitn(3, ' ');
    let (what, name, rest) = (
        words.next().unwrap_or_default(),
        words.next().unwrap_or_default(),
        words.next().unwrap_or_default(),
    );
    let family = name.strip_suffix("_total").unwrap_or(name);
    let kind = match (what, rest) {
        ("TYPE", "counter") if family == name => "unknown",
        _ => rest,
    };
    format!("# {what} {family} {kind}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "\
# HELP gridwork_requests_total Requests
# TYPE gridwork_requests_total counter
gridwork_requests_total{route=\"generate\"} 3

# TYPE odd counter
odd 1

# TYPE seconds histogram
seconds_bucket{le=\"0.5\"} 1
seconds_bucket{le=\"1\"} 2
seconds_bucket{le=\"+Inf\"} 3
seconds_sum 4.5
seconds_count 3
";

    fn page(values: &[f64]) -> String {
        let mut buckets = Buckets::new(vec![0.5, 1.0]);
        for value in values {
            buckets.note(*value, "abc");
        }
        rewritten(PAGE, &HashMap::from([("seconds", buckets)]))
    }

    #[test]
    fn families_have_the_names_and_types_of_the_format() {
        let text = page(&[]);
        for line in [
            "# HELP gridwork_requests Requests",
            "# TYPE gridwork_requests counter",
            "gridwork_requests_total{route=\"generate\"} 3",
            "# TYPE odd unknown",
            "seconds_bucket{le=\"1\"} 2",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
        assert!(text.ends_with("\n# EOF\n"));
        assert!(!text.contains("\n\n"));
    }

    #[test]
    fn a_bucket_has_the_last_trace_whose_value_is_in_it() {
        let text = page(&[0.5, 0.7, 0.75, 2.0]);
        let exemplar = |bound: &str| {
            let line = text.lines().find(|line| line.contains(bound));
            let (_, exemplar) = line.expect("a bucket").split_once(" # ")?;
            exemplar.split(' ').nth(1)?.parse::<f64>().ok()
        };
        assert_eq!(exemplar("\"0.5\""), Some(0.5));
        assert_eq!(exemplar("\"1\""), Some(0.75));
        assert_eq!(exemplar("+Inf"), Some(2.0));
        assert!(text.contains("# {trace_id=\"abc\"} 0.75 "));
        assert_eq!(page(&[0.1]).matches("trace_id").count(), 1);
    }

    #[test]
    fn noted_values_are_on_the_page() {
        note(
            "gridwork_request_duration_seconds",
            Duration::from_millis(600),
            "t1",
        );
        let page = "gridwork_request_duration_seconds_bucket{le=\"0.0005\"} 0\n";
        assert!(!of_page(page).contains("t1"));
        let bounds = buckets_of("gridwork_request_duration_seconds");
        let page: String = bounds
            .iter()
            .map(|bound| format!("gridwork_request_duration_seconds_bucket{{le=\"{bound}\"}} 1\n"))
            .collect();
        let text = of_page(&page);
        let line = text.lines().find(|line| line.contains("t1")).expect("it");
        assert!(line.contains("le=\"0.768\""), "{line}");
    }
}
