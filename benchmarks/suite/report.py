"""Writes results.md of a machine: the table of targets, then a section for every workload."""

import os
from collections.abc import Collection, Iterable

from suite import plots
from suite.results import PAGES, Contestant, Part, Place, read, spread
from suite.targets import Target, all_targets, beyond_bytes, context_growth, roofline_ms, weight_bytes
from suite.workloads import WORKLOADS


def write(place: Place) -> None:
    """Writes results.md and its plots."""
    parts = read(place.data)
    drawn = plots.draw(parts, place.folder / "plots")
    readme = os.path.relpath(PAGES / "README.md", place.folder)
    (place.folder / "results.md").write_text(document(parts, drawn, readme))


def document(parts: list[Part], drawn: Collection[str] = (), readme: str = "README.md") -> str:
    """The text of results.md. drawn: file names of its plots; readme: relative path of the page about benchmarks."""
    order = {name: index for index, name in enumerate(WORKLOADS)}
    parts = sorted(parts, key=lambda part: (order.get(part.workload, len(order)), part.model))
    lines = [
        "# Results",
        "",
        f"Written by `make bench`, as [README.md]({readme}) describes. Figures are medians over the rounds, with the",
        "lowest and the highest in parentheses. Compare figures of one table only: they come from one run.",
        "",
        "## Targets",
        "",
        *_dtypes(parts),
        "",
        *targets_table(all_targets(parts)),
        "",
        "The cost of a step of router and scheduler is measured by `make bench-router`.",
        "",
    ]
    for part in parts:
        lines += [f"## {part.workload}, {part.model}", "", *heading(part), "", *table(part), ""]
        lines += _plots(part, drawn)
    if commands := _commands(parts):
        lines += ["## Commands", "", *commands, ""]
    return "\n".join(lines)


def _dtypes(parts: list[Part]) -> list[str]:
    """Sentences that name the dtypes of the contestants."""
    others = sorted({each.name for part in parts for each in part.contestants if each.dtype != "bfloat16"})
    if not others:
        return ["On two cores, in bfloat16."]
    return [
        f"On two cores, in bfloat16; {', '.join(others)} in float32, since this processor has no AVX-512,",
        "without which they multiply bfloat16 several times as slowly.",
    ]


def targets_table(targets: Iterable[Target]) -> list[str]:
    """Lines of a table with all targets. A target without a value gives the reason."""
    lines = ["| figure | against | at least | reached | |", "|---|---|---|---|---|"]
    for target in targets:
        value = target.value or f"– ({_cell(target.missing or 'not measured')})"
        verdict = {None: "", True: "yes", False: "**no**"}[target.reached]
        lines.append(f"| {target.figure} | {target.against} | {target.wanted} | {value} | {verdict} |")
    return lines


def heading(part: Part) -> list[str]:
    """Lines that describe the workload, the machine and the date."""
    about = WORKLOADS[part.workload].about if part.workload in WORKLOADS else part.workload
    machine = part.machine
    where = f"{machine['cores']} cores of {machine['cpu']}, {', '.join(machine['flags'])}, {machine['memory_gib']} GiB"
    rounds = part.rounds()
    return [
        f"{about[:1].upper()}{about[1:]}. Measured {part.measured} on {where}; {rounds} round{'s' * (rounds != 1)}; "
        f"memory is read at {spread(part.bandwidth_gb_s)} GB/s.",
    ]


def table(part: Part) -> list[str]:
    """Lines of a table with the figures of one part, and notes about its contestants."""
    kind = {"start": _start, "memory": _memory, "context": _context}.get(part.workload, _loads)
    lines = kind(part)
    for contestant in part.contestants:
        if contestant.failure:
            lines.append(
                f"\n{contestant.name}: **not measured{' further' * bool(contestant.samples)}**, "
                f"`{_cell(contestant.failure)}`"
            )
        elif contestant.note:
            lines.append(f"\n{contestant.name} ran {contestant.note}.")
    return lines


def _measured(part: Part) -> list[Contestant]:
    return [contestant for contestant in part.contestants if contestant.samples]


def _loads(part: Part) -> list[str]:
    level_name = "batch" if part.workload == "offline" else "clients"
    lines = [
        f"| server | {level_name} | tokens/s | TTFT p50, ms | TTFT p99, ms | TPOT p50, ms |",
        "|---|---|---|---|---|---|",
    ]
    for contestant in _measured(part):
        for level in contestant.levels():
            cells = [spread(contestant.values("tokens_per_s", level))]
            cells += [spread(contestant.values(metric, level), 0) for metric in ("ttft_ms", "ttft_p99_ms")]
            cells += [spread(contestant.values("tpot_ms", level))]
            missing = sum(contestant.values("missing_tokens", level))
            if missing:
                cells[0] += f", {missing:.0f} tokens too few"
            lines.append(f"| {contestant.name} | {level} | {' | '.join(cells)} |")
    if (floor_ms := roofline_ms(part)) is not None:
        lines.append(
            f"\nWeight bytes of a token over the memory bandwidth: {floor_ms:.1f} ms, "
            "the lower bound of TPOT at 1 client."
        )
    return lines


def _start(part: Part) -> list[str]:
    lines = ["| server | version | first token after, s |", "|---|---|---|"]
    for contestant in _measured(part):
        lines.append(f"| {contestant.name} | {contestant.version} | {spread(contestant.values('ready_s', 1))} |")
    return lines


def _memory(part: Part) -> list[str]:
    lines = ["| server | peak, MiB | weights | KV cache | beyond these |", "|---|---|---|---|---|"]
    for contestant in _measured(part):
        beyond = beyond_bytes(part, contestant)
        level = contestant.levels()[0]
        peaks = [value / (1 << 20) for value in contestant.values("peak_bytes", level)]
        kv_mib = (contestant.median("kv_bytes", level) or 0) / (1 << 20)
        cells = [spread(peaks, 0), f"{weight_bytes(part, contestant) / (1 << 20):.0f}", f"{kv_mib:.0f}"]
        cells.append("–" if beyond is None else f"**{beyond / (1 << 20):.0f}**")
        lines.append(f"| {contestant.name} | {' | '.join(cells)} |")
    return lines


def _context(part: Part) -> list[str]:
    lines = [
        "| server | prompt, tokens | TPOT, ms | KV read, MiB | time grew | bytes grew |",
        "|---|---|---|---|---|---|",
    ]
    for contestant in _measured(part):
        growth = [(1.0, 1.0), *context_growth(part, contestant)]
        for level, (slower, more) in zip(contestant.levels(), growth, strict=False):
            tokens = contestant.median("prompt_tokens", level) or 0
            kv_mib = tokens * part.kv_bytes_per_token / (1 << 20)
            tpot = spread(contestant.values("tpot_ms", level))
            lines.append(f"| {contestant.name} | {tokens:.0f} | {tpot} | {kv_mib:.0f} | {slower:.2f} | {more:.2f} |")
    return lines


def _plots(part: Part, drawn: Collection[str]) -> list[str]:
    name = f"{part.model}-{part.workload}"
    return [f"![{name}](plots/{name}.svg)", ""] if f"{name}.svg" in drawn else []


def _commands(parts: list[Part]) -> list[str]:
    """One line for each contestant and model."""
    seen: dict[tuple[str, str], str] = {}
    for part in parts:
        for contestant in part.contestants:
            if contestant.command and part.workload != "memory":
                line = f"- {contestant.name} {contestant.version}, {part.model}: `{contestant.command}`"
                seen.setdefault((contestant.name, part.model), line)
    return list(seen.values())


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("`", "'")
