"""Writes the dashboards of deploy/grafana/dashboards: `python deploy/grafana/generate.py`.

With --check it compares them with what it would write. It needs nothing but Python."""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "dashboards"

#: Servers that a dashboard shows, by its variables.
SERVERS = 'job=~"$job",instance=~"$instance"'

#: Panels of a row, and the grid that Grafana divides a row into.
COLUMNS, GRID_WIDTH = 3, 24

PALETTE = {"mode": "palette-classic"}


@dataclass(frozen=True)
class Query:
    """An expression and the name of its series in the legend."""

    expression: str
    legend: str = "{{instance}}"


@dataclass(frozen=True)
class Panel:
    """A graph over time, or with `stat` the newest value alone."""

    title: str
    queries: list[Query]
    description: str
    unit: str = "short"
    stat: bool = False


@dataclass(frozen=True)
class Row:
    title: str
    panels: list[Panel]


@dataclass(frozen=True)
class Dashboard:
    uid: str
    title: str
    description: str
    rows: list[Row] = field(default_factory=list)


def value(metric: str, labels: str = "") -> str:
    """A metric of the chosen servers. labels: further matchers."""
    return f"{metric}{{{SERVERS}{',' + labels if labels else ''}}}"


def rate(metric: str, labels: str = "") -> str:
    """Growth of a counter, by the second."""
    return f"rate({value(metric, labels)}[$__rate_interval])"


def quantiles(histogram: str) -> list[Query]:
    """Median and tail of a histogram over all chosen servers."""
    buckets = f"sum by (le) ({rate(histogram + '_bucket')})"
    return [
        Query(f"histogram_quantile({share}, {buckets})", name)
        for share, name in ((0.5, "median"), (0.95, "95 %"), (0.99, "99 %"))
    ]


def mean(histogram: str) -> str:
    return f"sum by (instance) ({rate(histogram + '_sum')}) / sum by (instance) ({rate(histogram + '_count')})"


def total(expression: str, by: str = "instance") -> str:
    return f"sum by ({by}) ({expression})"


RESTARTS = Panel(
    "Shard restarts",
    [Query(f"increase({value('gridwork_shard_restarts_total')}[1h])")],
    "Times that the shard was lost within an hour. Running requests are continued on the new shard.",
)

OVERVIEW = Dashboard(
    "gridwork-overview",
    "Gridwork: overview",
    "Is it up, is it busy, does it answer?",
    [
        Row(
            "Now",
            [
                Panel(
                    "Ready shards",
                    [Query(f"sum({value('gridwork_shard_ready')})", "ready")],
                    "Servers whose shard can compute now.",
                    stat=True,
                ),
                Panel(
                    "Generated tokens a second",
                    [Query(f"sum({rate('gridwork_generated_tokens_total')})", "tokens")],
                    "Over all chosen servers.",
                    stat=True,
                ),
                Panel(
                    "Versions",
                    [Query(f"count by (version) ({value('gridwork_build_info')})", "{{version}}")],
                    "Servers of each version.",
                    stat=True,
                ),
            ],
        ),
        Row(
            "Load",
            [
                Panel(
                    "Requests a second",
                    [Query(total(rate("gridwork_requests_total"), "route"), "{{route}}")],
                    "Received requests, by route.",
                    "reqps",
                ),
                Panel(
                    "Running and waiting",
                    [
                        Query(total(value("gridwork_running_sequences")), "{{instance}} running"),
                        Query(total(value("gridwork_queue_size")), "{{instance}} waiting"),
                    ],
                    "Sequences that are computed, and generations that wait to be started.",
                ),
                Panel(
                    "Tokens a second",
                    [
                        Query(f"sum({rate('gridwork_prompt_tokens_total')})", "prompt"),
                        Query(f"sum({rate('gridwork_cached_prompt_tokens_total')})", "prompt, from the cache"),
                        Query(f"sum({rate('gridwork_generated_tokens_total')})", "generated"),
                    ],
                    "Prompt tokens are counted when a generation is admitted.",
                ),
            ],
        ),
        Row(
            "Answers",
            [
                Panel(
                    "Answered requests a second",
                    [Query(total(rate("gridwork_request_success_total")))],
                    "Requests that were answered in full.",
                    "reqps",
                ),
                Panel(
                    "Failures a second",
                    [Query(total(rate("gridwork_request_failures_total"), "kind"), "{{kind}}")],
                    "Refused or failed requests, by kind: validation and the like are the client's, generation, "
                    "internal and unavailable the server's, overloaded means that it is full.",
                    "reqps",
                ),
                Panel(
                    "Duration of requests",
                    quantiles("gridwork_request_duration_seconds"),
                    "From the request to the end of its answer.",
                    "s",
                ),
                Panel(
                    "Failed generations a second",
                    [Query(total(rate("gridwork_generation_failures_total"), "kind"), "{{kind}}")],
                    "Generations that failed after they were admitted.",
                ),
                Panel(
                    "Clients that left, a second",
                    [Query(total(rate("gridwork_requests_aborted_total")))],
                    "Generations whose client disconnected before the end.",
                ),
                RESTARTS,
            ],
        ),
    ],
)

LATENCY = Dashboard(
    "gridwork-latency",
    "Gridwork: latency",
    "Where a request's time goes.",
    [
        Row(
            "What clients see",
            [
                Panel(
                    "Time to the first token",
                    quantiles("gridwork_time_to_first_token_seconds"),
                    "From admission, after tokenizing, to the first token.",
                    "s",
                ),
                Panel(
                    "Time per output token",
                    quantiles("gridwork_time_per_output_token_seconds"),
                    "Mean time between the tokens of a generation, after its first.",
                    "s",
                ),
                Panel(
                    "Duration of requests",
                    quantiles("gridwork_request_duration_seconds"),
                    "From the request to the end of its answer.",
                    "s",
                ),
            ],
        ),
        Row(
            "Phases",
            [
                Panel(
                    "Validation",
                    quantiles("gridwork_request_validation_seconds"),
                    "Tokenizing and checking a prompt, including the wait for a worker.",
                    "s",
                ),
                Panel(
                    "Queue",
                    quantiles("gridwork_request_queue_seconds"),
                    "From admission to the first step.",
                    "s",
                ),
                Panel(
                    "Inference",
                    quantiles("gridwork_request_inference_seconds"),
                    "From the first step to the last token.",
                    "s",
                ),
            ],
        ),
        Row(
            "Sizes",
            [
                Panel(
                    "Prompt tokens",
                    quantiles("gridwork_request_input_tokens"),
                    "Tokens of a prompt, after truncation.",
                ),
                Panel(
                    "Generated tokens",
                    quantiles("gridwork_request_generated_tokens"),
                    "Tokens that a successful request has generated.",
                ),
                Panel(
                    "Allowed tokens",
                    quantiles("gridwork_request_max_new_tokens"),
                    "Maximum number of tokens that a request may generate.",
                ),
            ],
        ),
    ],
)


def share(part: str, whole: str) -> str:
    return f"{total(rate(part))} / {total(rate(whole))}"


CACHE = Dashboard(
    "gridwork-cache",
    "Gridwork: cache and scheduler",
    "Is there room, and what does each step compute?",
    [
        Row(
            "Cache",
            [
                Panel(
                    "Cache in use",
                    [Query(value("gridwork_kv_cache_usage_ratio"))],
                    "Share of the blocks that sequences hold. Blocks that are only cached are free for others.",
                    "percentunit",
                ),
                Panel(
                    "Blocks",
                    [
                        Query(value("gridwork_cache_blocks_used"), "{{instance}} used"),
                        Query(value("gridwork_prefix_cache_blocks"), "{{instance}} cached"),
                        Query(value("gridwork_cache_blocks_total"), "{{instance}} total"),
                    ],
                    "A block may be used and cached.",
                ),
                Panel(
                    "Preemptions a second",
                    [Query(total(rate("gridwork_preemptions_total")))],
                    "Sequences put back into the queue because the cache was full. They are computed again.",
                ),
                Panel(
                    "Tokens found in the prefix cache",
                    [
                        Query(
                            share("gridwork_prefix_cache_hit_tokens_total", "gridwork_prefix_cache_lookup_tokens_total")
                        )
                    ],
                    "Share of the tokens that were looked up.",
                    "percentunit",
                ),
                Panel(
                    "Evicted blocks a second",
                    [Query(total(rate("gridwork_prefix_cache_evicted_blocks_total")))],
                    "Blocks that left the prefix cache because sequences needed them.",
                ),
                Panel(
                    "Accepted drafts",
                    [
                        Query(
                            share(
                                "gridwork_speculation_accepted_tokens_total",
                                "gridwork_speculation_drafted_tokens_total",
                            )
                        )
                    ],
                    "Share of the drafted tokens that saved a step. Without --speculate only grammars draft.",
                    "percentunit",
                ),
            ],
        ),
        Row(
            "Scheduler",
            [
                Panel(
                    "Running and waiting",
                    [
                        Query(value("gridwork_running_sequences"), "{{instance}} running"),
                        Query(value("gridwork_queue_size"), "{{instance}} waiting"),
                    ],
                    "Sequences that are computed, and generations that wait to be started.",
                ),
                Panel(
                    "Sequences in a step",
                    [
                        *quantiles("gridwork_step_sequences"),
                        Query(mean("gridwork_step_sequences"), "{{instance}} mean"),
                    ],
                    "How full the batches are.",
                ),
                Panel(
                    "Tokens in a step",
                    [*quantiles("gridwork_step_tokens"), Query(mean("gridwork_step_tokens"), "{{instance}} mean")],
                    "Decodes have one token of a sequence, chunks of prompts up to the budget.",
                ),
                Panel(
                    "Violated invariants",
                    [Query(value("gridwork_scheduler_integrity_violations_total"))],
                    "Anything but 0 is a bug in Gridwork.",
                ),
            ],
        ),
    ],
)

SHARD = Dashboard(
    "gridwork-shard",
    "Gridwork: shard",
    "What a step costs, and where.",
    [
        Row(
            "State",
            [
                Panel(
                    "Shard can compute",
                    [Query(value("gridwork_shard_ready"))],
                    "1 if it can; 0 while it loads, hangs or is restarted.",
                ),
                RESTARTS,
                Panel(
                    "Uptime of the router",
                    [Query(f"time() - {value('process_start_time_seconds')}")],
                    "Time since its process started.",
                    "s",
                ),
            ],
        ),
        Row(
            "Steps",
            [
                Panel(
                    "Steps a second",
                    [Query(total(rate("gridwork_steps_total")))],
                    "Forward passes over a batch.",
                ),
                Panel(
                    "Time of a step",
                    quantiles("gridwork_step_seconds"),
                    "From sending a step to receiving its result, in the router. Up to two steps are in flight.",
                    "s",
                ),
                Panel(
                    "Parts of a step, mean",
                    [
                        Query(mean("gridwork_step_seconds"), "{{instance}} whole"),
                        Query(mean("gridwork_step_forward_seconds"), "{{instance}} forward"),
                        Query(mean("gridwork_step_sample_seconds"), "{{instance}} sampling"),
                    ],
                    "The model's part and sampling are measured by the shard; the rest is waiting and transfer.",
                    "s",
                ),
                Panel(
                    "Forward pass",
                    quantiles("gridwork_step_forward_seconds"),
                    "The model's part of a step, measured by the shard.",
                    "s",
                ),
                Panel(
                    "Sampling",
                    quantiles("gridwork_step_sample_seconds"),
                    "The sampling part of a step, measured by the shard.",
                    "s",
                ),
                Panel(
                    "Connections",
                    [Query(value("gridwork_connections"))],
                    "Open connections of clients.",
                ),
            ],
        ),
    ],
)

DASHBOARDS = [OVERVIEW, LATENCY, CACHE, SHARD]


def grafana_panel(panel: Panel, number: int, x: int, y: int) -> dict[str, Any]:
    """A panel in Grafana's form, at a place of the grid."""
    source = {"type": "prometheus", "uid": "${datasource}"}
    return {
        "id": number,
        "type": "stat" if panel.stat else "timeseries",
        "title": panel.title,
        "description": panel.description,
        "datasource": source,
        "gridPos": {"x": x, "y": y, "w": GRID_WIDTH // COLUMNS, "h": 4 if panel.stat else 8},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0, "color": PALETTE}, "overrides": []},
        "options": {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}}
        if panel.stat
        else {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi", "sort": "desc"}},
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": source,
                "expr": query.expression,
                "legendFormat": query.legend,
            }
            for index, query in enumerate(panel.queries)
        ],
    }


def grafana_panels(rows: list[Row]) -> Iterator[dict[str, Any]]:
    """All panels, below the headings of their rows."""
    number, y = 1, 0
    for row in rows:
        yield {
            "id": number,
            "type": "row",
            "title": row.title,
            "collapsed": False,
            "panels": [],
            "gridPos": {"x": 0, "y": y, "w": GRID_WIDTH, "h": 1},
        }
        number, y = number + 1, y + 1
        for start in range(0, len(row.panels), COLUMNS):
            line = row.panels[start : start + COLUMNS]
            for column, panel in enumerate(line):
                yield grafana_panel(panel, number, column * GRID_WIDTH // COLUMNS, y)
                number += 1
            y += 4 if all(panel.stat for panel in line) else 8


def variable(name: str, label: str, query: str) -> dict[str, Any]:
    """A variable with the values of a label, of which several may be chosen."""
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "options": [],
    }


def grafana_dashboard(dashboard: Dashboard) -> dict[str, Any]:
    """A dashboard in Grafana's form."""
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.description,
        "tags": ["gridwork"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "",
        "links": [
            {
                "type": "dashboards",
                "title": "Gridwork",
                "tags": ["gridwork"],
                "asDropdown": True,
                "includeVars": True,
                "keepTime": True,
            }
        ],
        "templating": {
            "list": [
                {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
                variable("job", "Job", "label_values(gridwork_build_info, job)"),
                variable("instance", "Instance", 'label_values(gridwork_build_info{job=~"$job"}, instance)'),
            ]
        },
        "annotations": {"list": []},
        "panels": list(grafana_panels(dashboard.rows)),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a dashboard is out of date")
    check = parser.parse_args().check
    outdated = []
    for dashboard in DASHBOARDS:
        path = FOLDER / f"{dashboard.uid}.json"
        text = json.dumps(grafana_dashboard(dashboard), indent=2) + "\n"
        if path.exists() and path.read_text() == text:
            continue
        outdated.append(path.name)
        if not check:
            path.write_text(text)
    if check and outdated:
        print(f"{', '.join(outdated)}: out of date; run python deploy/grafana/generate.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
