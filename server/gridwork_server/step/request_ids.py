"""Ids of the requests that sequences belong to, for log lines that concern them."""

from collections.abc import Iterable

_MOST = 8
"""Maximum number of ids in a line."""


class RequestIds:
    """The ids of all sequences, which come with them."""

    def __init__(self) -> None:
        self._ids: dict[int, tuple[str, str]] = {}

    def admit(self, sequence_id: int, request_id: str, traceparent: str) -> None:
        """Begins a sequence. request_id: id of its request, or empty. traceparent: W3C trace context, or empty."""
        trace_id = traceparent.split("-")[1] if traceparent.count("-") == 3 else ""
        self._ids[sequence_id] = (request_id, trace_id)

    def release(self, sequence_ids: Iterable[int]) -> None:
        """Ends sequences."""
        for sequence_id in sequence_ids:
            self._ids.pop(sequence_id, None)

    def fields(self, sequence_ids: Iterable[int]) -> dict[str, str]:
        """Fields of a log line about sequences: `request_id` and `trace_id`, where they are known; or `request_ids` and
        `trace_ids`, separated by commas, where there are several."""
        known = [self._ids.get(sequence_id, ("", "")) for sequence_id in sequence_ids][:_MOST]
        fields = {}
        for name, ids in (("request_id", [ids[0] for ids in known]), ("trace_id", [ids[1] for ids in known])):
            distinct = [each for each in dict.fromkeys(ids) if each]
            if distinct:
                fields[name if len(distinct) == 1 else f"{name}s"] = ",".join(distinct)
        return fields
