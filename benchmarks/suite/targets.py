"""The targets of Gridwork on two cores in bfloat16, and the values that a set of results reaches."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from suite.results import DTYPE_BYTES, Contestant, Part

CHAT_CLIENTS = (1, 8, 32, 64)
OFFLINE_RATIOS = {4: 2.3, 8: 2.9, 16: 3.2, 32: 3.8}
ALL_AT_ONCE = 64
SMALL, LARGE = "smollm2-135m", "llama-1.2b"
_CACHE_OFF = "ourselves, prefix cache off"


@dataclass(frozen=True)
class Target:
    """A line of the table. `value` is None when a measurement is missing; `missing` names it."""

    figure: str
    against: str
    wanted: str
    value: str | None
    reached: bool | None
    missing: str = ""


class Results:
    """Medians by workload, model and contestant."""

    def __init__(self, parts: Iterable[Part]) -> None:
        self._parts = {(part.workload, part.model): part for part in parts}

    def part(self, workload: str, model: str) -> Part | None:
        return self._parts.get((workload, model))

    def median(self, workload: str, model: str, name: str, metric: str, level: int) -> float | None:
        part = self.part(workload, model)
        contestant = part.contestant(name) if part else None
        return contestant.median(metric, level) if contestant else None

    def peers(self, workload: str, model: str, prefix: str = "") -> list[str]:
        """Contestants of a part, without Gridwork's, whose names begin with the prefix."""
        part = self.part(workload, model)
        names = [contestant.name for contestant in part.contestants] if part else []
        return [name for name in names if not name.startswith("gridwork") and name.startswith(prefix)]

    def best(
        self, workload: str, model: str, names: list[str], metric: str, level: int, choose: "Choose"
    ) -> tuple[float | None, str]:
        """The best median of these contestants, with the name of its contestant."""
        found = [(self.median(workload, model, name, metric, level), name) for name in names]
        measured = [(value, name) for value, name in found if value is not None]
        return choose(measured) if measured else (None, "")


class Choose(Protocol):
    """`min` or `max`."""

    def __call__(self, found: list[tuple[float, str]], /) -> tuple[float, str]: ...


def all_targets(parts: Iterable[Part]) -> list[Target]:
    """All targets, in the order of the table."""
    r = Results(parts)
    lines: list[Target] = []
    for model, wanted in ((SMALL, 1.3), (LARGE, 1.1)):
        lines += [_tokens_per_s(r, model, clients, wanted) for clients in CHAT_CLIENTS]
    for model in (SMALL, LARGE):
        for batch, wanted in OFFLINE_RATIOS.items():
            lines.append(_offline(r, model, batch, batch, wanted))
            lines.append(_offline(r, model, batch, ALL_AT_ONCE, wanted))
    lines += [_tpot(r, SMALL, 1.35), _tpot(r, LARGE, 1.15)]
    lines += [_ttft(r, model, clients) for model in (SMALL, LARGE) for clients in (1, 32)]
    for clients in (1, 8):
        lines.append(_multi_turn(r, "multi-turn", clients, "gridwork-no-prefix-cache", _CACHE_OFF, 5.0))
        lines.append(_multi_turn(r, "multi-turn", clients, "vllm-", "vLLM", 1.3))
    lines.append(_multi_turn(r, "long-conversation", 1, "gridwork-no-prefix-cache", _CACHE_OFF, 5.0))
    lines += _structured(r)
    lines += _start(r)
    lines += [_memory(r), _int8(r), _context(r, SMALL), _context(r, LARGE)]
    return lines


def _at_least(figure: str, against: str, wanted: float, ours: float | None, theirs: float | None, why: str) -> Target:
    value = _ratio(ours, theirs)
    shown = f"{value:.2f} times ({ours:.4g} against {theirs:.4g})" if value is not None else None
    return Target(figure, against, f"{wanted} times", shown, None if value is None else value >= wanted, why)


def _at_most(figure: str, against: str, wanted: float, ours: float | None, theirs: float | None, why: str) -> Target:
    value = _ratio(ours, theirs)
    shown = f"{value:.2f} times ({ours:.4g} against {theirs:.4g})" if value is not None else None
    return Target(figure, against, f"{wanted} times or less", shown, None if value is None else value <= wanted, why)


def _ratio(ours: float | None, theirs: float | None) -> float | None:
    return None if ours is None or theirs is None else ours / theirs


def _why(r: Results, workload: str, model: str, *prefixes: str) -> str:
    """Reason why a part lacks the comparison of contestants with these prefixes."""
    part = r.part(workload, model)
    if part is None:
        return "not measured"
    for prefix in prefixes:
        found = [contestant for contestant in part.contestants if contestant.name.startswith(prefix)]
        if not found:
            return f"not measured: {prefix.rstrip('-')}"
        if failed := _failed(found):
            return failed
    return "not measured"


def _failed(contestants: list[Contestant]) -> str:
    if any(contestant.samples for contestant in contestants):
        return ""
    return next((f"{found.name}: {found.failure}" for found in contestants if found.failure), "")


def _tokens_per_s(r: Results, model: str, clients: int, wanted: float) -> Target:
    theirs, whose = r.best("chat", model, r.peers("chat", model, "vllm-"), "tokens_per_s", clients, max)
    ours = r.median("chat", model, "gridwork", "tokens_per_s", clients)
    figure = f"tokens per second, {_clients(clients)}, {model}"
    return _at_least(
        figure, _named("best of vLLM", whose), wanted, ours, theirs, _why(r, "chat", model, "gridwork", "vllm-")
    )


def _offline(r: Results, model: str, batch: int, level: int, wanted: float) -> Target:
    ours = r.median("offline", model, "gridwork", "tokens_per_s", level)
    theirs = r.median("offline", model, "generate", "tokens_per_s", batch)
    how = "all requests sent at once" if level == ALL_AT_ONCE else f"{level} at a time"
    figure = f"offline, {how}, {model}"
    why = _why(r, "offline", model, "gridwork", "generate")
    return _at_least(figure, f"`generate()`, batches of {batch}", wanted, ours, theirs, why)


def _tpot(r: Results, model: str, wanted: float) -> Target:
    part = r.part("chat", model)
    tpot_ms = r.median("chat", model, "gridwork", "tpot_ms", 1)
    floor_ms = roofline_ms(part) if part else None
    why = _why(r, "chat", model, "gridwork")
    return _at_most(f"TPOT, ms, 1 client, {model}", "weights / memory bandwidth", wanted, tpot_ms, floor_ms, why)


def roofline_ms(part: Part, kv_tokens: float = 0) -> float | None:
    """Lower bound of the time of a token at batch 1: one read of the weights that it passes through, and of its
    context's keys and values."""
    if not part.bandwidth_gb_s:
        return None
    gb_s = sorted(part.bandwidth_gb_s)[len(part.bandwidth_gb_s) // 2]
    weights = part.weight_bytes if part.read_bytes is None else part.read_bytes
    return (weights + kv_tokens * part.kv_bytes_per_token) / gb_s / 1e6


def _ttft(r: Results, model: str, clients: int) -> Target:
    theirs, whose = r.best("chat", model, r.peers("chat", model), "ttft_ms", clients, min)
    ours = r.median("chat", model, "gridwork", "ttft_ms", clients)
    why = _why(r, "chat", model, "gridwork", "vllm-", "transformers-serve")
    return _at_most(f"TTFT p50, ms, {_clients(clients)}, {model}", _named("best peer", whose), 0.7, ours, theirs, why)


def _multi_turn(r: Results, workload: str, clients: int, prefix: str, against: str, wanted: float) -> Target:
    part = r.part(workload, SMALL)
    names = [contestant.name for contestant in part.contestants if contestant.name.startswith(prefix)] if part else []
    theirs, _whose = r.best(workload, SMALL, names, "tokens_per_s", clients, max)
    ours = r.median(workload, SMALL, "gridwork", "tokens_per_s", clients)
    why = _why(r, workload, SMALL, "gridwork", prefix)
    return _at_least(f"{workload}, {_clients(clients)}, {SMALL}", against, wanted, ours, theirs, why)


def _structured(r: Results) -> list[Target]:
    lines: list[Target] = []
    for clients in (1, 32):
        ours = r.median("structured", SMALL, "gridwork", "tpot_ms", clients)
        free = r.median("unstructured", SMALL, "gridwork", "tpot_ms", clients)
        figure = f"TPOT with a JSON schema, ms, {_clients(clients)}, {SMALL}"
        why = _why(r, "structured", SMALL, "gridwork")
        lines.append(_at_most(figure, "ourselves, without a schema", 1.05, ours, free, why))
        lines.append(_of_vllm(r, figure, "structured", "tpot_ms", clients))
    beside = r.median("structured-beside", SMALL, "gridwork", "tpot_ms", 64)
    free = r.median("unstructured", SMALL, "gridwork", "tpot_ms", 64)
    figure = f"TPOT without a schema, ms, 32 clients beside 32 with one, {SMALL}"
    why = _why(r, "structured-beside", SMALL, "gridwork")
    lines.append(_at_most(figure, "ourselves, 64 clients without", 1.02, beside, free, why))
    lines.append(_of_vllm(r, figure, "structured-beside", "tpot_ms", 64))
    figure = f"TTFT with a new JSON schema, ms, {SMALL}"
    ours = r.median("new-schema", SMALL, "gridwork", "ttft_ms", 1)
    free = r.median("no-schema", SMALL, "gridwork", "ttft_ms", 1)
    shown = f"{ours - free:.1f} ms ({ours:.4g} against {free:.4g})" if ours is not None and free is not None else None
    reached = ours - free <= 30 if ours is not None and free is not None else None
    why = _why(r, "new-schema", SMALL, "gridwork")
    lines.append(Target(figure, "ourselves, without a schema", "30 ms more or less", shown, reached, why))
    lines.append(_of_vllm(r, figure, "new-schema", "ttft_ms", 1))
    return lines


def _of_vllm(r: Results, figure: str, workload: str, metric: str, level: int) -> Target:
    theirs, whose = r.best(workload, SMALL, r.peers(workload, SMALL, "vllm-"), metric, level, min)
    ours = r.median(workload, SMALL, "gridwork", metric, level)
    why = _why(r, workload, SMALL, "gridwork", "vllm-")
    return _at_most(figure, _named("best of vLLM", whose), 1.0, ours, theirs, why)


def _start(r: Results) -> list[Target]:
    figure = f"from command to first token, s, {SMALL}"
    ours = r.median("start", SMALL, "gridwork", "ready_s", 1)
    best, whose = r.best("start", SMALL, r.peers("start", SMALL), "ready_s", 1, min)
    vllm, _whose = r.best("start", SMALL, r.peers("start", SMALL, "vllm-"), "ready_s", 1, min)
    why = _why(r, "start", SMALL, "gridwork", "vllm-")
    absolute = Target(
        figure, "the clock", "10 s or less", f"{ours:.1f} s" if ours else None, ours <= 10 if ours else None
    )
    return [
        _at_most(figure, _named("best peer", whose), 1.0, ours, best, why),
        _at_most(figure, "vLLM", 0.1, ours, vllm, why),
        absolute,
    ]


def _memory(r: Results) -> Target:
    part = r.part("memory", SMALL)
    rest: dict[str, float] = {}
    for contestant in part.contestants if part else []:
        if part and (value := beyond_bytes(part, contestant)) is not None:
            rest[contestant.name] = value / (1 << 20)
    vllm = [value for name, value in rest.items() if name.startswith("vllm-")]
    why = _why(r, "memory", SMALL, "gridwork", "vllm-")
    figure = f"memory beyond weights and KV cache, MiB, {SMALL}"
    return _at_most(figure, "vLLM", 0.5, rest.get("gridwork"), min(vllm) if vllm else None, why)


def beyond_bytes(part: Part, contestant: Contestant) -> float | None:
    """Peak memory minus the weights and the capacity of the KV cache."""
    level = next(iter(contestant.levels()), 0)
    peak, kv = contestant.median("peak_bytes", level), contestant.median("kv_bytes", level)
    return None if peak is None or kv is None else peak - weight_bytes(part, contestant) - kv


def weight_bytes(part: Part, contestant: Contestant) -> int:
    """Bytes of the weights in the contestant's dtype. Their file is in bfloat16."""
    return part.weight_bytes * DTYPE_BYTES[contestant.dtype] // DTYPE_BYTES["bfloat16"]


def _int8(r: Results) -> Target:
    ours = r.median("decode", LARGE, "gridwork-int8", "tokens_per_s", 1)
    plain = r.median("decode", LARGE, "gridwork", "tokens_per_s", 1)
    why = _why(r, "decode", LARGE, "gridwork", "gridwork-int8")
    return _at_least(f"int8, 1 client, {LARGE}", "ourselves in bfloat16", 1.6, ours, plain, why)


def _context(r: Results, model: str) -> Target:
    """Growth of the time per token over growth of the bytes per token, from the shortest context; the worst length."""
    figure, against = f"decode at 128 to 8k tokens of context, {model}", "growth of the bytes read (weights and KV)"
    part = r.part("context", model)
    ours = part.contestant("gridwork") if part else None
    if part is None or ours is None or len(ours.levels()) < 2:
        return Target(figure, against, "1.0 times or less", None, None, _why(r, "context", model, "gridwork"))
    growth = [pair[0] / pair[1] for pair in context_growth(part, ours)]
    return Target(figure, against, "1.0 times or less", f"{max(growth):.2f} times", max(growth) <= 1.0)


def context_growth(part: Part, contestant: Contestant) -> list[tuple[float, float]]:
    """Ratios of the time and of the bytes per token to those of the shortest context, for each longer one."""
    points = []
    for level in contestant.levels():
        tpot_ms, tokens = contestant.median("tpot_ms", level), contestant.median("prompt_tokens", level)
        if tpot_ms is not None and tokens is not None:
            points.append((tpot_ms, part.weight_bytes + part.kv_bytes_per_token * tokens))
    return [(time / points[0][0], read / points[0][1]) for time, read in points[1:]]


def _named(against: str, whose: str) -> str:
    return f"{against}: {whose}" if whose else against


def _clients(count: int) -> str:
    return "1 client" if count == 1 else f"{count} clients"
