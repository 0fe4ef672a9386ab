//! Traces: a span for each request, sent to an OpenTelemetry collector if one is configured.
//!
//! A background thread exports spans from a bounded queue: a collector that is
//! slow or down costs spans, never time. The caller's `traceparent` decides whether a request is traced. Without it,
//! all are, unless `--otlp-sampling-ratio` or OpenTelemetry's own variables (`OTEL_TRACES_SAMPLER`) say otherwise.

use std::time::Duration;

use axum::http::{HeaderMap, StatusCode};
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{TraceContextExt, TracerProvider};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{ExporterBuildError, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracer, SdkTracerProvider, SpanData,
    SpanExporter,
};
use tracing::{Span, Subscriber, field::Empty};
use tracing_opentelemetry::{OpenTelemetryLayer, OpenTelemetrySpanExt};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::registry::LookupSpan;

use crate::observability::collector_warning::CollectorWarning;

/// Maximum time for sending the last spans when the router ends.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Event of the SDK when [`FLUSH_TIMEOUT`] is over. It is hidden, since [`Telemetry::shutdown`] tells the user.
pub const FLUSH_TIMEOUT_EVENT: &str = "BatchSpanProcessor.Shutdown.Timeout";

/// Maximum time for sending one batch.
pub(super) const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum number of waiting spans. A request has six or more.
const MAX_QUEUED_SPANS: usize = 8192;

/// Connection to the collector.
pub struct Telemetry {
    provider: SdkTracerProvider,
}

impl Telemetry {
    /// Prepares sending spans to `endpoint`. Connects when there are spans to send.
    ///
    /// Must be called in a tokio runtime that outlives the sending. Fails for an endpoint that cannot be used.
    ///
    /// `sampling_ratio`: share of the traces without a caller that are recorded; `None`: as OpenTelemetry's own
    /// variables say.
    pub fn start(
        endpoint: &str,
        service_name: &str,
        sampling_ratio: Option<f64>,
    ) -> Result<Self, ExporterBuildError> {
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_tonic()
            .with_endpoint(endpoint)
            .with_timeout(EXPORT_TIMEOUT)
            .build()?;
        Ok(Self::with_exporter(
            QuietExporter {
                inner: exporter,
                warning: CollectorWarning::new("traces", endpoint),
            },
            service_name,
            sampling_ratio,
        ))
    }

    fn with_exporter(
        exporter: impl SpanExporter + 'static,
        service_name: &str,
        sampling_ratio: Option<f64>,
    ) -> Self {
        let config = BatchConfigBuilder::default()
            .with_max_queue_size(MAX_QUEUED_SPANS)
            .build();
        let resource = resource(service_name);
        let processor = BatchSpanProcessor::builder(exporter)
            .with_batch_config(config)
            .build();
        let mut builder = SdkTracerProvider::builder()
            .with_span_processor(processor)
            .with_resource(resource);
        if let Some(ratio) = sampling_ratio {
            let of_roots = Sampler::TraceIdRatioBased(ratio);
            builder = builder.with_sampler(Sampler::ParentBased(Box::new(of_roots)));
        }
        Telemetry {
            provider: builder.build(),
        }
    }

    /// Returns the layer that converts spans of Gridwork's own crates to OpenTelemetry.
    pub fn layer<S>(&self) -> impl Layer<S> + Send + Sync + use<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
    {
        let layer: OpenTelemetryLayer<S, SdkTracer> =
            tracing_opentelemetry::layer().with_tracer(self.provider.tracer("gridwork"));
        let own = Targets::new()
            .with_target("gridwork_router", LevelFilter::INFO)
            .with_target("gridwork_engine", LevelFilter::INFO);
        layer
            .with_context_activation(false)
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_filter(own)
    }

    /// Sends queued spans for at most a second, and warns about those that are lost.
    pub async fn shutdown(self) {
        // This blocks. The runtime must keep running meanwhile, since it drives the connection.
        let flushed =
            tokio::task::spawn_blocking(move || self.provider.shutdown_with_timeout(FLUSH_TIMEOUT));
        if !matches!(flushed.await, Ok(Ok(()))) {
            tracing::warn!(
                "the collector did not take the last traces within {FLUSH_TIMEOUT:?}: they are lost"
            );
        }
    }
}

/// An exporter whose failures are a warning now and then, instead of an error for every batch.
#[derive(Debug)]
struct QuietExporter<E> {
    inner: E,
    warning: CollectorWarning,
}

impl<E: SpanExporter> SpanExporter for QuietExporter<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        if let Err(error) = self.inner.export(batch).await {
            self.warning.warn(&error);
        }
        Ok(())
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

/// Attributes of this process in all signals.
pub(super) fn resource(service_name: &str) -> Resource {
    Resource::builder()
        .with_service_name(service_name.to_owned())
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build()
}

/// Makes the span of one request, a child of the caller's span if `headers` have a W3C `traceparent`
/// (<https://www.w3.org/TR/trace-context/>).
///
/// Empty fields are filled later: counts as integers, times in seconds. Names that begin with `gen_ai` are those of
/// OpenTelemetry's semantic conventions for generative AI. Costs almost nothing when tracing is off.
///
/// `operation`: what the route does, by these conventions. `model`: name of the served model.
pub fn request_span(
    headers: &HeaderMap,
    method: &'static str,
    route: &'static str,
    operation: &'static str,
    model: &str,
) -> Span {
    let span = tracing::info_span!(
        "request",
        otel.name = route,
        otel.kind = "server",
        otel.status_code = Empty,
        http.request.method = method,
        http.route = route,
        http.response.status_code = Empty,
        error.type = Empty,
        gen_ai.operation.name = operation,
        gen_ai.provider.name = "gridwork",
        gen_ai.request.model = model,
        gen_ai.request.id = request_id(headers),
        gen_ai.usage.input_tokens = Empty,
        gen_ai.usage.cache_read.input_tokens = Empty,
        gen_ai.usage.output_tokens = Empty,
        time_to_first_token = Empty,
        parameters = Empty,
        total_time = Empty,
        validation_time = Empty,
        queue_time = Empty,
        inference_time = Empty,
        time_per_token = Empty,
        seed = Empty,
    );
    if !span.is_disabled() && headers.contains_key("traceparent") {
        let parent =
            TraceContextPropagator::new().extract_with_context(&Context::new(), &Headers(headers));
        // Fails when tracing is off; then no parent is needed.
        let _ = span.set_parent(parent);
    }
    span
}

/// Records how a request has ended. Its span's status is an error when the server is at fault, by OpenTelemetry's
/// conventions for HTTP servers. `reason`: as in the log of requests. `failure`: kind of the error.
pub fn end(span: &Span, status: Option<StatusCode>, reason: &str, failure: Option<&str>) {
    if span.is_disabled() {
        return;
    }
    if let Some(status) = status {
        span.record("http.response.status_code", i64::from(status.as_u16()));
    }
    let has_left = reason == "client_disconnected";
    if let Some(kind) = failure.or(has_left.then_some(reason)) {
        span.record("error.type", kind);
    }
    // A stream that fails has begun with 200, and TGI's dialect has statuses of its own.
    let is_fault = matches!(failure, Some("generation" | "internal" | "unavailable"));
    if is_fault || status.is_some_and(|status| status.is_server_error()) {
        span.record("otel.status_code", "ERROR");
    }
}

/// Operation of a route, as OpenTelemetry's conventions name it. `label`: the route in metrics.
pub fn operation(label: &'static str) -> &'static str {
    match label {
        "chat_completions" | "messages" | "responses" => "chat",
        "completions" | "generate" | "generate_stream" => "text_completion",
        "embeddings" | "embed" | "embed_all" | "embed_sparse" => "embeddings",
        other => other,
    }
}

/// Maximum number of bytes of a request id in a span.
const MAX_REQUEST_ID_BYTES: usize = 256;

/// The header `x-request-id`, which the server has made if the client sent none.
fn request_id(headers: &HeaderMap) -> &str {
    let id = headers
        .get("x-request-id")
        .and_then(|id| id.to_str().ok())
        .unwrap_or_default();
    // It is ASCII, which can be cut anywhere.
    &id[..id.len().min(MAX_REQUEST_ID_BYTES)]
}

/// Records the seed of a request's draws. A seed beyond OpenTelemetry's integers is recorded as text.
pub fn record_seed(span: &Span, seed: u64) {
    match i64::try_from(seed) {
        Ok(seed) => span.record("seed", seed),
        Err(_) => span.record("seed", seed.to_string()),
    };
}

/// Id of the trace that a span belongs to; `None` when it is not recorded.
pub fn trace_id(span: &Span) -> Option<String> {
    if span.is_disabled() {
        return None;
    }
    let context = span.context();
    let span = context.span();
    let context = span.span_context();
    (context.is_valid() && context.is_sampled()).then(|| context.trace_id().to_string())
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(axum::http::HeaderName::as_str).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::time::Instant;

    use axum::http::HeaderValue;
    use opentelemetry::trace::{SpanKind, Status};
    use opentelemetry_sdk::error::OTelSdkError;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[derive(Debug, Clone, Default)]
    struct Collected(Arc<Mutex<Vec<SpanData>>>);

    impl SpanExporter for Collected {
        async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
            self.0.lock().expect("the spans").extend(batch);
            Ok(())
        }
    }

    #[derive(Debug)]
    struct Down;

    impl SpanExporter for Down {
        async fn export(&self, _: Vec<SpanData>) -> OTelSdkResult {
            Err(OTelSdkError::InternalFailure("refused".into()))
        }
    }

    fn span_of(headers: &HeaderMap) -> Span {
        request_span(headers, "POST", "/generate", "text_completion", "org/m")
    }

    fn traced(headers: &HeaderMap, during: impl FnOnce(&Span)) -> Vec<SpanData> {
        sampled(None, headers, during)
    }

    fn sampled(
        ratio: Option<f64>,
        headers: &HeaderMap,
        during: impl FnOnce(&Span),
    ) -> Vec<SpanData> {
        let collected = Collected::default();
        let telemetry = Telemetry::with_exporter(collected.clone(), "test", ratio);
        tracing::subscriber::with_default(
            tracing_subscriber::registry().with(telemetry.layer()),
            || {
                during(&span_of(headers));
            },
        );
        telemetry.provider.shutdown().expect("a flush");
        std::mem::take(&mut *collected.0.lock().expect("the spans"))
    }

    fn with_parent(parent: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(
            "traceparent".parse().expect("a name"),
            HeaderValue::from_static(parent),
        )])
    }

    #[test]
    fn a_request_joins_the_trace_of_its_caller() {
        let spans = traced(&with_parent(PARENT), |span| {
            record_seed(span, 3);
            // The engine makes spans in this way, and passes them to the shard.
            drop(tracing::info_span!(target: "gridwork_engine::trace", parent: span, "queue"));
            let context = span.context();
            let context = context.span().span_context().clone();
            assert!(context.is_valid() && context.is_sampled());
            assert_eq!(
                context.trace_id().to_string(),
                "0af7651916cd43dd8448eb211c80319c"
            );
            tracing::info_span!(target: "hyper", "noise").in_scope(|| ());
        });
        let [queue, request] = &spans[..] else {
            panic!("{spans:?}")
        };
        assert_eq!(request.name, "/generate");
        assert_eq!(request.span_kind, SpanKind::Server);
        assert_eq!(request.parent_span_id.to_string(), "b7ad6b7169203331");
        assert!(
            request.attributes.contains(&KeyValue::new("seed", 3_i64)),
            "{:?}",
            request.attributes
        );
        assert!(
            request
                .attributes
                .contains(&KeyValue::new("http.route", "/generate"))
        );
        assert_eq!(queue.name, "queue");
        assert_eq!(queue.parent_span_id, request.span_context.span_id());
        assert_eq!(
            queue.span_context.trace_id(),
            request.span_context.trace_id()
        );
    }

    #[test]
    fn a_request_without_a_usable_parent_begins_a_trace() {
        for headers in [HeaderMap::new(), with_parent("nonsense")] {
            let spans = traced(&headers, |_| ());
            assert_eq!(spans.len(), 1);
            assert_eq!(spans[0].parent_span_id, opentelemetry::SpanId::INVALID);
            assert!(spans[0].span_context.is_valid());
        }
    }

    #[test]
    fn a_span_tells_how_its_request_has_ended() {
        let ended = |status: Option<u16>, reason: &str, failure: Option<&str>| {
            let status = status.map(|code| StatusCode::from_u16(code).expect("a status"));
            let [span] = &traced(&HeaderMap::new(), |span| end(span, status, reason, failure))[..]
            else {
                panic!("one span")
            };
            let kind = span
                .attributes
                .iter()
                .find(|attribute| attribute.key.as_str() == "error.type")
                .map(|attribute| attribute.value.to_string());
            (matches!(span.status, Status::Error { .. }), kind)
        };
        let kind = |text: &str| Some(text.to_owned());
        assert_eq!(ended(Some(200), "length", None), (false, None));
        let refused = ended(Some(422), "validation", Some("validation"));
        assert_eq!(refused, (false, kind("validation")));
        let late = ended(Some(200), "generation", Some("generation"));
        assert_eq!(late, (true, kind("generation")));
        let internal = ended(Some(500), "internal", Some("internal"));
        assert_eq!(internal, (true, kind("internal")));
        let left = ended(None, "client_disconnected", None);
        assert_eq!(left, (false, kind("client_disconnected")));
    }

    #[test]
    fn a_caller_that_does_not_trace_is_not_traced() {
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
        let spans = traced(&with_parent(parent), |span| {
            assert!(!span.context().span().span_context().is_sampled());
        });
        assert!(spans.is_empty());
    }

    #[test]
    fn the_ratio_applies_to_requests_without_a_caller_that_traces() {
        assert_eq!(sampled(Some(0.0), &HeaderMap::new(), |_| ()).len(), 0);
        assert_eq!(sampled(Some(1.0), &HeaderMap::new(), |_| ()).len(), 1);
        assert_eq!(sampled(Some(0.0), &with_parent(PARENT), |_| ()).len(), 1);
    }

    #[test]
    fn a_span_names_its_model_and_request_and_a_long_id_is_cut() {
        let long = "i".repeat(1000);
        let headers = HeaderMap::from_iter([(
            "x-request-id".parse().expect("a name"),
            HeaderValue::from_str(&long).expect("a value"),
        )]);
        let mut id = None;
        let spans = traced(&headers, |span| id = trace_id(span));
        assert_eq!(id, Some(spans[0].span_context.trace_id().to_string()));
        for attribute in [
            KeyValue::new("gen_ai.request.model", "org/m"),
            KeyValue::new("gen_ai.operation.name", "text_completion"),
            KeyValue::new("gen_ai.request.id", "i".repeat(MAX_REQUEST_ID_BYTES)),
        ] {
            assert!(spans[0].attributes.contains(&attribute), "{attribute:?}");
        }
        assert_eq!(trace_id(&Span::none()), None);
    }

    #[tokio::test]
    async fn a_collector_that_is_down_is_no_error() {
        let exporter = QuietExporter {
            inner: Down,
            warning: CollectorWarning::new("traces", "http://down"),
        };
        exporter.export(vec![]).await.expect("no error");
        assert!(!exporter.warning.may_warn(Instant::now()), "it has warned");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_collector_that_never_answers_holds_nothing_up() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port");
        let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
        let telemetry = Telemetry::start(&endpoint, "test", None).expect("a usable endpoint");
        let started = Instant::now();
        tracing::subscriber::with_default(
            tracing_subscriber::registry().with(telemetry.layer()),
            || {
                for _ in 0..1000 {
                    drop(span_of(&HeaderMap::new()));
                }
            },
        );
        assert!(
            started.elapsed() < Duration::from_millis(500),
            "{:?}",
            started.elapsed()
        );
        telemetry.shutdown().await;
        assert!(
            started.elapsed() < Duration::from_secs(2),
            "{:?}",
            started.elapsed()
        );
    }
}
