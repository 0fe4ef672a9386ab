"""Dashboards and alerting rules ask for metrics that exist. Debian's Prometheus answers each of their expressions."""

import itertools
import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from support.collector import Collector
from support.models import NAN
from support.paths import ROOT
from support.server import Server, free_port, wait_for

RULES = ROOT / "deploy/prometheus/rules/gridwork.yaml"
RULE_TESTS = ROOT / "deploy/prometheus/rules/tests"
GRAFANA = ROOT / "deploy/grafana"
DASHBOARDS = sorted((GRAFANA / "dashboards").glob("*.json"))

#: Variables of the dashboards, as Grafana would fill them in.
VARIABLES = {"$job": ".*", "$instance": ".*", "$__rate_interval": "20s"}

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed; `apt-get install prometheus` has it"
)
needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="Prometheus is not installed; `apt-get install prometheus` has it"
)


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def panel_expressions() -> dict[str, str]:
    """The expressions of all panels, by dashboard, panel and query."""
    found = {}
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            for query in panel.get("targets", []):
                found[f"{path.stem}: {panel['title']} {query['refId']}"] = query["expr"]
    return found


def variable_expressions() -> dict[str, str]:
    return {
        f"{path.stem}: {variable['name']}": variable["query"]["query"]
        for path in DASHBOARDS
        for variable in json.loads(path.read_text())["templating"]["list"]
        if variable["type"] == "query"
    }


def metrics_in(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:gridwork|process|vllm)[_:][a-z0-9_:]+", expression))


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as running:
        yield running


@pytest.fixture(scope="module")
def server(trap: Path, collector: Collector) -> Iterator[Server]:
    flags = ("--dtype", "float32", "--trust-remote-code", "--otlp-endpoint", collector.endpoint)
    with Server("--model-id", trap, *flags, env={"OTEL_METRIC_EXPORT_INTERVAL": "500"}) as running:
        yield running


def load(server: Server) -> None:
    """Requests of every kind that leaves a trace in the metrics."""
    client = server.client
    body = {"inputs": "The boats are past", "parameters": {"max_new_tokens": 6}}
    client.together([lambda: client.ok("/generate", body) for _ in range(6)])
    client.post("/generate", {"inputs": ""})
    client.post("/generate", {"inputs": f"a {NAN} b", "parameters": {"max_new_tokens": 4}})


def test_dashboards_are_what_the_generator_writes() -> None:
    command = [sys.executable, str(GRAFANA / "generate.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert len(DASHBOARDS) == 4
    ids = [json.loads(path.read_text())["uid"] for path in DASHBOARDS]
    assert ids == [path.stem for path in DASHBOARDS]


def test_every_metric_of_a_dashboard_or_rule_is_on_the_page(server: Server) -> None:
    load(server)
    page = server.client.get("/metrics").text
    shown = set(re.findall(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)[{ ]", page, re.MULTILINE))
    shown |= {rule["record"] for rule in rules() if "record" in rule}
    expressions = panel_expressions() | variable_expressions()
    expressions |= {f"rule {rule.get('record') or rule['alert']}": rule["expr"] for rule in rules()}
    assert len(expressions) > 50
    missing = {}
    for where, expression in expressions.items():
        assert metrics_in(expression), where
        if unknown := metrics_in(expression) - shown:
            missing[where] = unknown
    assert not missing


def test_a_metric_that_does_not_exist_is_found() -> None:
    assert metrics_in("sum(rate(gridwork_no_such_total{a='b'}[5m])) / gridwork:x:rate5m") == {
        "gridwork_no_such_total",
        "gridwork:x:rate5m",
    }


def test_every_alert_has_a_test_in_which_it_fires_and_one_in_which_it_is_silent() -> None:
    fires: dict[str, set[bool]] = {}
    for path in RULE_TESTS.glob("*.yaml"):
        for case in yaml.safe_load(path.read_text())["tests"]:
            for check in case["alert_rule_test"]:
                fires.setdefault(check["alertname"], set()).add(bool(check["exp_alerts"]))
    alerts = {rule["alert"] for rule in rules() if "alert" in rule}
    assert fires == {alert: {True, False} for alert in alerts}


@needs_promtool
def test_rules_are_valid_and_every_alert_fires_and_clears() -> None:
    checked = subprocess.run(["promtool", "check", "rules", str(RULES)], capture_output=True, text=True, timeout=60)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    tests = [path.name for path in RULE_TESTS.glob("*.yaml")]
    command = ["promtool", "test", "rules", *tests]
    tested = subprocess.run(command, cwd=RULE_TESTS, capture_output=True, text=True, timeout=120)
    assert tested.returncode == 0, tested.stdout + tested.stderr


@needs_promtool
def test_the_page_is_well_formed(server: Server) -> None:
    load(server)
    page = server.client.get("/metrics").text
    done = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True, text=True, timeout=60)
    # It also has opinions on names, which end with 3. What it cannot read ends with 1.
    assert done.returncode in (0, 3), done.stdout + done.stderr


def families(server: Server) -> dict[str, Metric]:
    """The page in OpenMetrics' format, by a strict parser."""
    response = server.client.http.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert response.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    return {family.name: family for family in text_string_to_metric_families(response.text)}


def test_the_page_in_openmetrics_has_the_same_metrics_and_exemplars(server: Server, collector: Collector) -> None:
    load(server)
    samples = {sample.name for family in families(server).values() for sample in family.samples}
    page = server.client.get("/metrics").text
    named = {line.split("{")[0].split(" ")[0] for line in page.splitlines() if line and not line.startswith("#")}
    assert named == samples
    for name in ("request_duration", "time_to_first_token", "time_per_output_token", "request_queue"):
        samples_of = families(server)[f"gridwork_{name}_seconds"].samples
        exemplars = [(sample.labels["le"], sample.exemplar) for sample in samples_of if sample.exemplar is not None]
        assert exemplars, name
        assert all(exemplar.value <= float(bound) for bound, exemplar in exemplars)
        traces = {exemplar.labels["trace_id"] for _, exemplar in exemplars}
        wait_for(partial(has_traces, collector, traces), 20, f"the traces of {name}")


def has_traces(collector: Collector, traces: set[str]) -> bool:
    return traces <= {span.trace_id for span in collector.spans}


def test_metrics_reach_the_collector_under_the_same_names(server: Server, collector: Collector) -> None:
    load(server)
    page = server.client.get("/metrics").text
    declared = {line.split()[2] for line in page.splitlines() if line.startswith("# TYPE gridwork_")}
    wait_for(lambda: declared <= set(collector.metrics), 20, "all metrics at the collector")
    of_the_conventions = {
        "gen_ai.server.request.duration",
        "gen_ai.server.time_to_first_token",
        "gen_ai.server.time_per_output_token",
        "gen_ai.client.token.usage",
    }
    wait_for(lambda: of_the_conventions <= set(collector.metrics), 20, "those of the conventions")
    model = server.client.get("/v1/models").json()["data"][0]["id"]
    [point] = collector.metrics["gen_ai.server.request.duration"].histogram.data_points
    attributes = {pair.key: pair.value.string_value for pair in point.attributes}
    assert attributes == {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "gridwork",
        "gen_ai.request.model": model,
    }

    def agrees() -> bool:
        counted = sum(each.as_int for each in collector.metrics["gridwork_generated_tokens_total"].sum.data_points)
        return counted == server.client.metric("gridwork_generated_tokens_total")

    wait_for(agrees, 20, "equal counts")


@pytest.fixture
def prometheus(server: Server, tmp_path: Path) -> Iterator[str]:
    """The address of a Prometheus that scrapes the server each second, with the rules."""
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [
            {"job_name": "gridwork", "static_configs": [{"targets": [server.url.removeprefix("http://")]}]}
        ],
    }
    file = tmp_path / "prometheus.yaml"
    file.write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    command = [
        *("prometheus", f"--config.file={file}", f"--storage.tsdb.path={tmp_path / 'data'}"),
        *(f"--web.listen-address={address}", "--enable-feature=exemplar-storage"),
    ]
    log = tmp_path / "log"
    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=output, cwd=tmp_path) as process:
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    socket.create_connection(tuple(address.split(":")), timeout=1).close()  # type: ignore[arg-type]
                    break
                except OSError:
                    assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                    time.sleep(0.1)
            yield f"http://{address}"
        finally:
            process.terminate()
            process.wait(30)


@needs_prometheus
def test_prometheus_answers_every_expression_with_data(server: Server, prometheus: str) -> None:
    stop = threading.Event()

    def keep_busy() -> None:
        while not stop.is_set():
            load(server)

    def has_data(expression: str) -> bool:
        for name, value in VARIABLES.items():
            expression = expression.replace(name, value)
        reply = httpx.get(f"{prometheus}/api/v1/query", params={"query": expression}, timeout=30, trust_env=False)
        assert reply.status_code == 200, f"{expression}: {reply.text}"
        return bool(reply.json()["data"]["result"])

    recorded = {f"rule {rule['record']}": rule["record"] for rule in rules() if "record" in rule}
    # The server has room for all of them.
    recorded.pop("rule gridwork:requests_overloaded:ratio5m")
    waiting = panel_expressions() | recorded
    busy = threading.Thread(target=keep_busy)
    busy.start()
    try:
        deadline = time.monotonic() + 120
        for pause in itertools.repeat(1.0):
            waiting = {where: expression for where, expression in waiting.items() if not has_data(expression)}
            if not waiting:
                break
            assert time.monotonic() < deadline, f"no data: {waiting}"
            time.sleep(pause)
    finally:
        stop.set()
        busy.join()
    query: dict[str, str | float] = {
        "query": "gridwork_request_duration_seconds_bucket",
        "start": time.time() - 600,
        "end": time.time() + 60,
    }
    reply = httpx.get(f"{prometheus}/api/v1/query_exemplars", params=query, timeout=30, trust_env=False)
    exemplars = [each for series in reply.json()["data"] for each in series["exemplars"]]
    assert exemplars and all(len(each["labels"]["trace_id"]) == 32 for each in exemplars)
