"""OpenTelemetry spans of the shard: a span for each traced sequence's prefill, and one for its decode."""

import logging
import math
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from loguru import logger

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter

_WARNING_INTERVAL_S = 60


class NoSpans:
    """Stands in when nothing is traced, at no cost."""

    def admit(self, sequence_id: int, traceparent: str, num_tokens: int, num_cached: int) -> None:
        """Begins a sequence. traceparent: W3C trace context of its request, or empty. num_tokens: number of known
        tokens, of which num_cached are in the cache."""

    def sampled(self, sequence_ids: Iterable[int]) -> None:
        """Notes that sequences have got a token."""

    def release(self, sequence_ids: Iterable[int]) -> None:
        """Ends sequences."""

    def shut_down(self) -> None:
        """Exports the remaining spans."""


class SequenceSpans(NoSpans):
    """Spans as children of the request's span, exported over OTLP in the background."""

    def __init__(self, endpoint: str) -> None:
        """endpoint: gRPC address of the collector. While it is down, spans are lost, with a warning now and then."""
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = TracerProvider(resource=Resource.create())
        exporter = OTLPSpanExporter(endpoint=endpoint, insecure=endpoint.startswith("http://"), timeout=5)
        # The exporter would log every failed attempt as an error.
        logging.getLogger("opentelemetry.exporter.otlp").setLevel(logging.CRITICAL)
        self._provider.add_span_processor(
            BatchSpanProcessor(_with_warnings(exporter, endpoint), schedule_delay_millis=1000)
        )
        self._tracer = self._provider.get_tracer("gridwork.shard")
        self._propagator = TraceContextTextMapPropagator()
        self._contexts: dict[int, Any] = {}
        self._prefills: dict[int, Any] = {}
        self._decodes: dict[int, Any] = {}
        self._steps: dict[int, int] = {}
        """Number of steps that each decode has had."""

    def admit(self, sequence_id: int, traceparent: str, num_tokens: int, num_cached: int) -> None:
        if traceparent:
            context = self._propagator.extract({"traceparent": traceparent})
            self._contexts[sequence_id] = context
            attributes = {"tokens": num_tokens - num_cached, "cached_tokens": num_cached}
            self._prefills[sequence_id] = self._tracer.start_span(
                "shard.prefill", context=context, attributes=attributes
            )

    def sampled(self, sequence_ids: Iterable[int]) -> None:
        if not self._contexts:
            return
        for sequence_id in map(int, sequence_ids):
            prefill = self._prefills.pop(sequence_id, None)
            if prefill is not None:
                prefill.end()
                self._decodes[sequence_id] = self._tracer.start_span(
                    "shard.decode", context=self._contexts[sequence_id]
                )
                self._steps[sequence_id] = 0
            elif sequence_id in self._steps:
                self._steps[sequence_id] += 1

    def release(self, sequence_ids: Iterable[int]) -> None:
        if not self._contexts:
            return
        for sequence_id in sequence_ids:
            if self._contexts.pop(sequence_id, None) is not None:
                num_steps = self._steps.pop(sequence_id, 0)
                if (prefill := self._prefills.pop(sequence_id, None)) is not None:
                    prefill.end()
                if (decode := self._decodes.pop(sequence_id, None)) is not None:
                    decode.set_attribute("steps", num_steps)
                    decode.end()

    def shut_down(self) -> None:
        """Exports the remaining spans, within a second."""
        self._provider.force_flush(1000)


def _with_warnings(exporter: "SpanExporter", endpoint: str) -> "SpanExporter":
    """Wraps the exporter, to warn now and then when the collector refuses spans."""
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    class WarningExporter(SpanExporter):
        def __init__(self) -> None:
            self._warned = -math.inf

        def export(self, spans: "Sequence[ReadableSpan]") -> SpanExportResult:
            result = exporter.export(spans)
            if result != SpanExportResult.SUCCESS and time.monotonic() - self._warned > _WARNING_INTERVAL_S:
                self._warned = time.monotonic()
                logger.warning(
                    f"the collector at {endpoint} does not take traces, which are lost meanwhile; "
                    "requests are not affected"
                )
            return result

        def shutdown(self) -> None:
            exporter.shutdown()

        def force_flush(self, timeout_millis: int = 30000) -> bool:
            return exporter.force_flush(timeout_millis)

    return WarningExporter()
