"""OpenTelemetry spans of the shard: one for a traced sequence's prefill, one for its decode."""

from collections.abc import Iterable
from typing import Any


class NoSpans:
    """What stands in when nothing is traced: costs nothing."""

    def admit(self, sequence_id: int, traceparent: str) -> None:
        """A sequence has been admitted; traceparent: W3C trace context of its request, or empty."""

    def sampled(self, sequence_ids: Iterable[int]) -> None:
        """These sequences have got a token."""

    def release(self, sequence_ids: Iterable[int]) -> None:
        """These sequences have ended."""

    def shut_down(self) -> None:
        """Exports what is left."""


class SequenceSpans(NoSpans):
    """Spans as children of the request's span, exported over OTLP in the background."""

    def __init__(self, endpoint: str) -> None:
        """endpoint: the collector, gRPC. One that is down costs a warning now and then, and the spans."""
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = TracerProvider(resource=Resource.create())
        exporter = OTLPSpanExporter(endpoint=endpoint, insecure=endpoint.startswith("http://"), timeout=5)
        self._provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=1000))
        self._tracer = self._provider.get_tracer("gridwork.shard")
        self._propagator = TraceContextTextMapPropagator()
        self._contexts: dict[int, Any] = {}
        self._prefills: dict[int, Any] = {}
        self._decodes: dict[int, Any] = {}

    def admit(self, sequence_id: int, traceparent: str) -> None:
        if traceparent:
            context = self._propagator.extract({"traceparent": traceparent})
            self._contexts[sequence_id] = context
            self._prefills[sequence_id] = self._tracer.start_span("shard.prefill", context=context)

    def sampled(self, sequence_ids: Iterable[int]) -> None:
        if not self._prefills:
            return
        for sequence_id in sequence_ids:
            prefill = self._prefills.pop(int(sequence_id), None)
            if prefill is not None:
                prefill.end()
                self._decodes[int(sequence_id)] = self._tracer.start_span(
                    "shard.decode", context=self._contexts[int(sequence_id)]
                )

    def release(self, sequence_ids: Iterable[int]) -> None:
        if not self._contexts:
            return
        for sequence_id in sequence_ids:
            if self._contexts.pop(sequence_id, None) is not None:
                for span in (self._prefills.pop(sequence_id, None), self._decodes.pop(sequence_id, None)):
                    if span is not None:
                        span.end()

    def shut_down(self) -> None:
        """Exports what is left, for a second at most."""
        self._provider.force_flush(1000)
