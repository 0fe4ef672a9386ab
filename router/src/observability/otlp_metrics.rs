//! Metrics to a collector, over OTLP: those of the page under the same names, and those of OpenTelemetry's conventions for
//! generative AI (<https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/>).

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder,
    SharedString, Unit,
};
use opentelemetry::KeyValue;
use opentelemetry::metrics::{
    Counter as OtelCounter, Gauge as OtelGauge, Histogram as OtelHistogram, Meter, MeterProvider,
};
use opentelemetry_otlp::{ExporterBuildError, WithExportConfig};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider, Temporality};

use crate::observability::collector_warning::CollectorWarning;
use crate::observability::metrics::{buckets_of, description_of};
use crate::observability::telemetry::{EXPORT_TIMEOUT, resource};

/// Interval of sending, unless OpenTelemetry's own variable says otherwise.
const INTERVAL: Duration = Duration::from_secs(15);
const INTERVAL_VARIABLE: &str = "OTEL_METRIC_EXPORT_INTERVAL";

/// Maximum time for sending the last values when the router ends.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Upper bounds of the buckets that the conventions advise, seconds.
const DURATION_BUCKETS: [f64; 14] = [
    0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92,
];
const FIRST_TOKEN_BUCKETS: [f64; 16] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
];
const OUTPUT_TOKEN_BUCKETS: [f64; 13] = [
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5,
];
const TOKEN_BUCKETS: [f64; 14] = [
    1.0,
    4.0,
    16.0,
    64.0,
    256.0,
    1024.0,
    4096.0,
    16384.0,
    65536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
];

static OF_THE_CONVENTIONS: OnceLock<GenAi> = OnceLock::new();

/// Sending of metrics to a collector.
pub struct OtlpMetrics {
    provider: SdkMeterProvider,
}

impl OtlpMetrics {
    /// Prepares sending to `endpoint`. Must be called in a tokio runtime that outlives the sending. Fails for an endpoint
    /// that cannot be used.
    pub fn start(endpoint: &str, service_name: &str) -> Result<Self, ExporterBuildError> {
        let exporter = opentelemetry_otlp::MetricExporter::builder()
            .with_tonic()
            .with_endpoint(endpoint)
            .with_timeout(EXPORT_TIMEOUT)
            .build()?;
        let quiet = QuietExporter {
            inner: exporter,
            warning: CollectorWarning::new("metrics", endpoint),
        };
        Ok(Self::with_exporter(quiet, service_name))
    }

    fn with_exporter(exporter: impl PushMetricExporter, service_name: &str) -> Self {
        let mut reader = PeriodicReader::builder(exporter);
        if std::env::var_os(INTERVAL_VARIABLE).is_none() {
            reader = reader.with_interval(INTERVAL);
        }
        let provider = SdkMeterProvider::builder()
            .with_reader(reader.build())
            .with_resource(resource(service_name))
            .build();
        Self { provider }
    }

    /// A recorder that sends to the collector, for use beside that of the page.
    pub fn recorder(&self) -> OtlpRecorder {
        let meter = self.provider.meter("gridwork");
        let _ = OF_THE_CONVENTIONS.set(GenAi::new(&meter));
        OtlpRecorder {
            meter,
            counters: Mutex::default(),
            gauges: Mutex::default(),
            histograms: Mutex::default(),
        }
    }

    /// Sends the last values, for at most a second.
    pub async fn shutdown(self) {
        // This blocks. The runtime must keep running meanwhile, since it drives the connection.
        let flushed = tokio::task::spawn_blocking(move || self.provider.shutdown());
        let _ = tokio::time::timeout(FLUSH_TIMEOUT, flushed).await;
    }
}

/// An exporter whose failures are a warning now and then.
struct QuietExporter<E> {
    inner: E,
    warning: CollectorWarning,
}

impl<E: PushMetricExporter> PushMetricExporter for QuietExporter<E> {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        if let Err(error) = self.inner.export(metrics).await {
            self.warning.warn(&error);
        }
        Ok(())
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn temporality(&self) -> Temporality {
        self.inner.temporality()
    }
}

/// Instruments by metric and labels.
type Known<T> = Mutex<HashMap<Key, T>>;

/// Records metrics for the collector. Instruments are made once for each metric and its labels.
pub struct OtlpRecorder {
    meter: Meter,
    counters: Known<Counter>,
    gauges: Known<Gauge>,
    histograms: Known<Histogram>,
}

/// The instrument of `key`, made if it is new.
fn known<T: Clone>(all: &Known<T>, key: &Key, make: impl FnOnce() -> T) -> T {
    let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(found) = all.get(key) {
        return found.clone();
    }
    let made = make();
    all.insert(key.clone(), made.clone());
    made
}

fn attributes(key: &Key) -> Vec<KeyValue> {
    key.labels()
        .map(|label| KeyValue::new(label.key().to_owned(), label.value().to_owned()))
        .collect()
}

impl Recorder for OtlpRecorder {
    // Descriptions are those of the tables.
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        known(&self.counters, key, || {
            let name = key.name().to_owned();
            let builder = self
                .meter
                .u64_counter(name)
                .with_description(description_of(key.name()));
            Counter::from_arc(Arc::new(CounterOf {
                counter: builder.build(),
                attributes: attributes(key),
                total: AtomicU64::new(0),
            }))
        })
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        known(&self.gauges, key, || {
            let name = key.name().to_owned();
            let builder = self
                .meter
                .f64_gauge(name)
                .with_description(description_of(key.name()));
            Gauge::from_arc(Arc::new(GaugeOf {
                gauge: builder.build(),
                attributes: attributes(key),
                value: Mutex::new(0.0),
            }))
        })
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        known(&self.histograms, key, || {
            let name = key.name().to_owned();
            let builder = self
                .meter
                .f64_histogram(name)
                .with_description(description_of(key.name()))
                .with_boundaries(buckets_of(key.name()));
            Histogram::from_arc(Arc::new(HistogramOf {
                histogram: builder.build(),
                attributes: attributes(key),
            }))
        })
    }
}

struct CounterOf {
    counter: OtelCounter<u64>,
    attributes: Vec<KeyValue>,
    /// Its value, for those who set it.
    total: AtomicU64,
}

impl CounterFn for CounterOf {
    fn increment(&self, value: u64) {
        self.total.fetch_add(value, Ordering::Relaxed);
        self.counter.add(value, &self.attributes);
    }

    fn absolute(&self, value: u64) {
        let before = self.total.fetch_max(value, Ordering::Relaxed);
        if value > before {
            self.counter.add(value - before, &self.attributes);
        }
    }
}

struct GaugeOf {
    gauge: OtelGauge<f64>,
    attributes: Vec<KeyValue>,
    value: Mutex<f64>,
}

impl GaugeOf {
    fn change(&self, change: impl FnOnce(f64) -> f64) {
        let mut value = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        *value = change(*value);
        self.gauge.record(*value, &self.attributes);
    }
}

impl GaugeFn for GaugeOf {
    fn increment(&self, value: f64) {
        self.change(|before| before + value);
    }

    fn decrement(&self, value: f64) {
        self.change(|before| before - value);
    }

    fn set(&self, value: f64) {
        self.change(|_| value);
    }
}

struct HistogramOf {
    histogram: OtelHistogram<f64>,
    attributes: Vec<KeyValue>,
}

impl HistogramFn for HistogramOf {
    fn record(&self, value: f64) {
        self.histogram.record(value, &self.attributes);
    }
}

/// Metrics of the conventions.
struct GenAi {
    request_duration: OtelHistogram<f64>,
    time_to_first_token: OtelHistogram<f64>,
    time_per_output_token: OtelHistogram<f64>,
    token_usage: OtelHistogram<u64>,
}

impl GenAi {
    fn new(meter: &Meter) -> Self {
        let seconds = |name: &'static str, bounds: &[f64]| {
            let histogram = meter.f64_histogram(name).with_unit("s");
            histogram.with_boundaries(bounds.to_vec()).build()
        };
        Self {
            request_duration: seconds("gen_ai.server.request.duration", &DURATION_BUCKETS),
            time_to_first_token: seconds("gen_ai.server.time_to_first_token", &FIRST_TOKEN_BUCKETS),
            time_per_output_token: seconds(
                "gen_ai.server.time_per_output_token",
                &OUTPUT_TOKEN_BUCKETS,
            ),
            token_usage: meter
                .u64_histogram("gen_ai.client.token.usage")
                .with_unit("{token}")
                .with_boundaries(TOKEN_BUCKETS.to_vec())
                .build(),
        }
    }
}

/// A request that was answered, as the conventions count it.
pub struct Answered<'a> {
    pub operation: &'static str,
    pub model: &'a str,
    pub total: Duration,
    pub first_token: Option<Duration>,
    /// Time for each token after the first one.
    pub per_output_token: Option<Duration>,
    pub input_tokens: u64,
    pub output_tokens: u64,
}

impl Answered<'_> {
    /// Records the request, where metrics go to a collector.
    pub fn record(&self) {
        let Some(metrics) = OF_THE_CONVENTIONS.get() else {
            return;
        };
        let attributes = [
            KeyValue::new("gen_ai.operation.name", self.operation),
            KeyValue::new("gen_ai.provider.name", "gridwork"),
            KeyValue::new("gen_ai.request.model", self.model.to_owned()),
        ];
        metrics
            .request_duration
            .record(self.total.as_secs_f64(), &attributes);
        for (histogram, time) in [
            (&metrics.time_to_first_token, self.first_token),
            (&metrics.time_per_output_token, self.per_output_token),
        ] {
            if let Some(time) = time {
                histogram.record(time.as_secs_f64(), &attributes);
            }
        }
        for (kind, count) in [("input", self.input_tokens), ("output", self.output_tokens)] {
            let [operation, provider, model] = attributes.clone();
            let kind = KeyValue::new("gen_ai.token.type", kind);
            metrics
                .token_usage
                .record(count, &[operation, provider, model, kind]);
        }
    }
}

#[cfg(test)]
mod tests {
    use metrics::{Label, Level};
    use opentelemetry_sdk::metrics::InMemoryMetricExporter;
    use opentelemetry_sdk::metrics::data::{AggregatedMetrics, MetricData};

    use super::*;

    const METADATA: Metadata<'static> = Metadata::new("test", Level::INFO, None);

    #[test]
    fn the_collector_gets_what_is_recorded_under_the_same_names() {
        let exporter = InMemoryMetricExporter::default();
        let sending = OtlpMetrics::with_exporter(exporter.clone(), "test");
        let recorder = sending.recorder();
        let key = Key::from_parts(
            "gridwork_requests_total",
            vec![Label::new("route", "generate")],
        );
        for _ in 0..2 {
            recorder.register_counter(&key, &METADATA).increment(2);
        }
        let key = Key::from_name("gridwork_queue_size");
        let gauge = recorder.register_gauge(&key, &METADATA);
        gauge.set(5.0);
        gauge.decrement(2.0);
        let key = Key::from_name("gridwork_request_duration_seconds");
        recorder.register_histogram(&key, &METADATA).record(0.75);
        sending.provider.force_flush().expect("a flush");
        let exported = exporter.get_finished_metrics().expect("metrics");
        let find = |name: &str| {
            let mut all = exported
                .iter()
                .flat_map(|resource| resource.scope_metrics())
                .flat_map(|scope| scope.metrics());
            all.find(|metric| metric.name() == name)
                .unwrap_or_else(|| panic!("no {name}"))
        };
        let AggregatedMetrics::U64(MetricData::Sum(sum)) = find("gridwork_requests_total").data()
        else {
            panic!("a sum")
        };
        let point = sum.data_points().next().expect("a point");
        assert_eq!(point.value(), 4);
        assert_eq!(
            point.attributes().next(),
            Some(&KeyValue::new("route", "generate"))
        );
        let AggregatedMetrics::F64(MetricData::Gauge(gauge)) = find("gridwork_queue_size").data()
        else {
            panic!("a gauge")
        };
        assert_eq!(gauge.data_points().next().expect("a point").value(), 3.0);
        let metric = find("gridwork_request_duration_seconds");
        assert!(metric.description().contains("successful requests"));
        let AggregatedMetrics::F64(MetricData::Histogram(histogram)) = metric.data() else {
            panic!("a histogram")
        };
        let point = histogram.data_points().next().expect("a point");
        let bounds: Vec<f64> = point.bounds().collect();
        assert_eq!(bounds, buckets_of("gridwork_request_duration_seconds"));
        assert_eq!(point.count(), 1);
    }
}
