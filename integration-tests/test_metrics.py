"""Metrics count events and show nothing in use when idle. Spans reach a collector; a broken one harms no request."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.client import events_of
from support.collector import Collector
from support.models import KILL, NAN, RAISE
from support.server import Server, wait_for

#: Names that dashboards use; a changed name breaks them.
NAMES = (
    "gridwork_queue_size",
    "gridwork_running_sequences",
    "gridwork_cache_blocks_used",
    "gridwork_cache_blocks_total",
    "gridwork_kv_cache_usage_ratio",
    "gridwork_time_to_first_token_seconds",
    "gridwork_time_per_output_token_seconds",
    "gridwork_request_queue_seconds",
    "gridwork_request_inference_seconds",
    "gridwork_prompt_tokens_total",
    "gridwork_generated_tokens_total",
    "gridwork_steps_total",
    "gridwork_step_sequences",
    "gridwork_step_tokens",
    "gridwork_preemptions_total",
    "gridwork_requests_aborted_total",
    "gridwork_shard_restarts_total",
)


@pytest.fixture(scope="module")
def server(trap: Path) -> Iterator[Server]:
    with Server("--model-id", trap, "--dtype", "float32", "--trust-remote-code") as running:
        yield running


def check_idle(server: Server) -> None:
    def idle() -> bool:
        values = server.client.metrics()
        names = (
            "gridwork_cache_blocks_used",
            "gridwork_kv_cache_usage_ratio",
            "gridwork_running_sequences",
            "gridwork_queue_size",
        )
        return all(values[name] == 0 for name in names)

    wait_for(idle, 10, "no block in use, nothing running, nothing queued")
    assert server.client.metric("gridwork_scheduler_integrity_violations_total") == 0


def test_every_metric_exists_with_a_description(server: Server) -> None:
    server.client.generate("The boats", max_new_tokens=4)
    text = server.client.get("/metrics").text
    for name in NAMES:
        assert f"# TYPE {name} " in text, name
        assert f"# HELP {name} " in text, name


def test_vllm_names_have_the_values_of_gridworks(server: Server) -> None:
    server.client.generate("The boats", max_new_tokens=4)
    check_idle(server)
    text = server.client.get("/metrics").text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
    model = server.client.get("/v1/models").json()["data"][0]["id"]
    labels = f'model_name="{model}",engine="0"'
    for theirs, ours in (
        ("num_requests_waiting", "gridwork_queue_size"),
        ("num_requests_running", "gridwork_running_sequences"),
        ("kv_cache_usage_perc", "gridwork_kv_cache_usage_ratio"),
        ("generation_tokens_total", "gridwork_generated_tokens_total"),
        ("time_to_first_token_seconds_count", "gridwork_time_to_first_token_seconds_count"),
    ):
        assert values[f"vllm:{theirs}{{{labels}}}"] == values[ours]
    blocks = int(float(values["gridwork_cache_blocks_total"]))
    size = server.client.get("/info").json()["block_size"]
    assert f'vllm:cache_config_info{{{labels},block_size="{size}",num_gpu_blocks="{blocks}"}}' in values
    assert any(name.startswith("vllm:lora_requests_info{") for name in values)


def test_the_state_of_the_server_is_a_metric(server: Server) -> None:
    values = server.client.metrics()
    assert values["gridwork_shard_ready"] == 1
    assert 0 < values["process_start_time_seconds"] < time.time()
    assert any(name.startswith("gridwork_build_info{version=") for name in values)


def test_no_label_has_a_requests_text(server: Server) -> None:
    word = "zanzibar"
    for path, body in (
        ("/generate", {"inputs": word, "parameters": {"max_new_tokens": 2, "stop": [word]}}),
        ("/v1/completions", {"prompt": word, "max_tokens": 2, "model": word, "user": word}),
        ("/v1/chat/completions", {"messages": [{"role": word, "content": word}], "model": word}),
        (f"/{word}", {}),
        ("/v1/completions", {word: 1}),
    ):
        server.client.post(path, body, headers={"x-request-id": word, "User-Agent": word})
    assert word not in server.client.get("/metrics").text


def test_tokens_are_counted(server: Server) -> None:
    client = server.client
    before = client.metrics()
    answers = [client.generate("The boats are past", max_new_tokens=7) for _ in range(3)]
    prompt = len(client.ok("/tokenize", {"inputs": "The boats are past"}))
    after = client.metrics()
    counted = {name: after[name] - before.get(name, 0) for name in after}
    assert counted["gridwork_generated_tokens_total"] == sum(len(answer.token_ids) for answer in answers)
    assert counted["gridwork_prompt_tokens_total"] == 3 * prompt
    assert counted["gridwork_time_to_first_token_seconds_count"] == 3


def test_nothing_is_in_use_after_normal_ends(server: Server) -> None:
    server.client.together(
        [lambda i=i: server.client.generate("The boats " * i, max_new_tokens=5) for i in range(1, 20)]
    )
    check_idle(server)


def test_nothing_is_in_use_after_clients_have_left(server: Server) -> None:
    aborted = server.client.metric("gridwork_requests_aborted_total")

    def leave(index: int) -> None:
        route, body = (
            ("/generate_stream", {"inputs": "The boats", "parameters": {"max_new_tokens": 900}}),
            ("/v1/completions", {"prompt": "The boats", "max_tokens": 900, "stream": True, "temperature": 0}),
        )[index % 2]
        with server.client.http.stream("POST", route, json=body) as response:
            events = events_of(response)
            for _ in range(index):
                next(events)

    server.client.together([lambda i=i: leave(i) for i in range(8)])
    check_idle(server)
    assert server.client.metric("gridwork_requests_aborted_total") >= aborted + 8


def test_nothing_is_in_use_after_an_abandoned_answer(server: Server) -> None:
    import httpx

    with pytest.raises(httpx.ReadTimeout):
        server.client.post("/generate", {"inputs": "The boats", "parameters": {"max_new_tokens": 900}}, timeout=0.5)
    check_idle(server)


def test_nothing_is_in_use_after_refusals(server: Server) -> None:
    for body in ({"inputs": ""}, {"inputs": "x", "parameters": {"max_new_tokens": 99999}}, {"inputs": 3}):
        assert server.client.post("/generate", body).status_code == 422
        assert server.client.post("/generate_stream", body).status_code == 422
    check_idle(server)


def test_nothing_is_in_use_after_failures(server: Server) -> None:
    for word in (NAN, KILL):
        reply = server.client.post("/generate", {"inputs": f"a {word} b", "parameters": {"max_new_tokens": 4}})
        assert reply.status_code == 424, reply.text
    values = server.client.metrics()
    assert any("nan_logits" in name and value > 0 for name, value in values.items())
    check_idle(server)


def test_nothing_is_in_use_after_clients_leave_during_a_restart(server: Server) -> None:
    stay = threading.Thread(target=lambda: server.client.generate_stream("The seeds", max_new_tokens=60))
    body = {"inputs": "The boats", "parameters": {"max_new_tokens": 900}}
    with server.client.http.stream("POST", "/generate_stream", json=body) as response:
        next(events_of(response))
        stay.start()
        server.shards()[0].kill()
    stay.join()
    check_idle(server)


# --- traces -----------------------------------------------------------------------------------------------------


def test_one_trace_spans_http_and_the_shard(trap: Path) -> None:
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    failing_id = "1af7651916cd43dd8448eb211c80319c"
    with Collector() as collector:
        flags = ("--dtype", "float32", "--trust-remote-code", "--otlp-endpoint", collector.endpoint)
        with Server("--model-id", trap, *flags, "--max-batch-prefill-tokens", "32") as server:
            headers = {"traceparent": f"00-{trace_id}-b7ad6b7169203331-01", "x-request-id": "of-the-test"}
            body = {"inputs": "boat " * 100, "parameters": {"max_new_tokens": 8}}
            assert server.client.post("/generate", body, headers=headers).status_code == 200
            num_prompt = len(server.client.ok("/tokenize", {"inputs": body["inputs"]}))
            model = server.client.get("/v1/models").json()["data"][0]["id"]
            check_failure(server, failing_id)
        [failed] = [span for span in collector.of_trace(failing_id) if span.name == "/generate"]
        assert failed.is_error
        assert failed.attributes["error.type"] == "generation"
        assert failed.attributes["http.response.status_code"] == 424
        spans = collector.of_trace(trace_id)
        assert not any(span.is_error for span in spans)
        summary = [(span.service, span.name) for span in collector.spans]
        services = {span.service for span in spans}
        assert len(services) >= 2, summary
        names = {span.name for span in spans}
        for phase in ("validation", "queue", "prefill", "prefill.chunk", "decode", "shard.prefill", "shard.decode"):
            assert phase in names, summary
        by_id = {span.span_id: span for span in spans}
        for span in spans:
            assert span.end_ns >= span.start_ns
            assert span.parent_id in by_id or span.parent_id == "b7ad6b7169203331", span
        [request] = [span for span in spans if span.parent_id == "b7ad6b7169203331"]
        parents = {span.name: by_id[span.parent_id].name for span in spans if span is not request}
        assert parents.pop("prefill.chunk") == "prefill"
        assert set(parents.values()) == {request.name}, parents
        chunks = [span.attributes for span in spans if span.name == "prefill.chunk"]
        assert sum(chunk["tokens"] for chunk in chunks) == num_prompt
        assert len(chunks) >= num_prompt // 32
        attributes = request.attributes
        expected = {
            "gen_ai.operation.name": "text_completion",
            "gen_ai.request.model": model,
            "gen_ai.request.id": "of-the-test",
            "gen_ai.usage.input_tokens": num_prompt,
            "gen_ai.usage.output_tokens": 8,
            "gen_ai.usage.cache_read.input_tokens": 0,
            "gen_ai.response.finish_reasons": ["length"],
        }
        assert {name: attributes.get(name) for name in expected} == expected
        assert 0 < attributes["queue_time"] + attributes["time_to_first_token"] < attributes["total_time"] * 2
        assert "boat boat" not in str([span.attributes for span in spans])
        assert not any(name.endswith(".messages") for span in spans for name in span.attributes)
        [decode] = [span for span in spans if span.name == "shard.decode"]
        assert 0 < decode.attributes["steps"] <= 8


def check_failure(server: Server, trace_id: str) -> None:
    """Sends a request that fails. Router and shard log its ids."""
    headers = {"traceparent": f"00-{trace_id}-b7ad6b7169203331-01", "x-request-id": "which-fails"}
    body = {"inputs": f"boat {RAISE}", "parameters": {"max_new_tokens": 8}}
    assert server.client.post("/generate", body, headers=headers).status_code == 424
    for part in ("router", "shard-0"):
        lines = [line for line in server.lines if f" {part} " in line and "which-fails" in line]
        assert lines, server.log_tail()
    assert any(" shard-0 " in line and trace_id in line for line in server.lines)


def test_a_request_without_traceparent_begins_a_trace(trap: Path) -> None:
    with Collector() as collector:
        flags = ("--dtype", "float32", "--trust-remote-code", "--otlp-endpoint", collector.endpoint)
        with Server("--model-id", trap, *flags) as server:
            list(server.client.stream("/v1/completions", {"prompt": "The boats", "max_tokens": 4, "stream": True}))
        assert {"queue", "prefill", "decode"} <= {span.name for span in collector.spans}


def test_prompts_and_answers_are_in_spans_only_when_asked_for(trap: Path) -> None:
    with Collector() as collector:
        flags = ("--dtype", "float32", "--trust-remote-code", "--otlp-endpoint", collector.endpoint)
        with Server("--model-id", trap, *flags, "--otlp-record-content") as server:
            body = {"prompt": "The boats", "max_tokens": 4, "n": 2, "temperature": 0}
            choices = server.client.ok("/v1/completions", body)["choices"]
        asked = [span.attributes["gen_ai.input.messages"] for span in collector.spans if span.name == "validation"]
        assert [json.loads(each) for each in asked] == [
            [{"role": "user", "parts": [{"type": "text", "content": "The boats"}]}]
        ]
        answered = [
            json.loads(span.attributes["gen_ai.output.messages"]) for span in collector.spans if span.name == "decode"
        ]
        texts = [message["parts"][0]["content"] for [message] in answered]
        assert sorted(texts) == sorted(choice["text"] for choice in choices)
        assert {message["finish_reason"] for [message] in answered} == {choice["finish_reason"] for choice in choices}


@pytest.mark.parametrize("by", ["flag", "variables"])
def test_sampling_is_configurable_and_a_caller_decides_for_itself(trap: Path, by: str) -> None:
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    variables = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0"}
    with Collector() as collector:
        flags = ("--dtype", "float32", "--trust-remote-code", "--otlp-endpoint", collector.endpoint)
        ratio = ("--otlp-sampling-ratio", "0") if by == "flag" else ()
        with Server("--model-id", trap, *flags, *ratio, env=variables if by == "variables" else None) as server:
            body = {"inputs": "The boats", "parameters": {"max_new_tokens": 2}}
            server.client.ok("/generate", body)
            headers = {"traceparent": f"00-{trace_id}-b7ad6b7169203331-01"}
            assert server.client.post("/generate", body, headers=headers).status_code == 200
        assert {span.trace_id for span in collector.spans} == {trace_id}


@pytest.mark.parametrize("collector", ["down", "silent"])
def test_a_broken_collector_causes_only_warnings(trap: Path, collector: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        if collector == "down":
            listener.close()
        endpoint = f"http://127.0.0.1:{port}"
        flags = ("--dtype", "float32", "--trust-remote-code", "--otlp-endpoint", endpoint, "--json-output")
        with Server("--model-id", trap, *flags) as server:
            for _ in range(3):
                assert server.client.generate("The boats", max_new_tokens=4).token_ids
    entries = [json.loads(line) for line in server.lines if line.startswith("{")]
    assert not [entry for entry in entries if entry["level"].upper() == "ERROR"], server.log_tail()
    warnings = [entry["message"] for entry in entries if entry["level"].upper() == "WARN"]
    # At the end the launcher waits for a silent collector in vain; it has usually given up one that is down.
    expected = "the last traces" if collector == "silent" else "the collector"
    assert any(expected in warning for warning in warnings), server.log_tail()


def test_each_finished_request_has_one_log_line_without_text(trap: Path) -> None:
    flags = ("--dtype", "float32", "--trust-remote-code", "--log-requests", "--json-output")
    completion = {"prompt": "The boats are past", "max_tokens": 4, "temperature": 0}
    requests = {
        "whole": ("/v1/completions", completion),
        "streamed": ("/v1/completions", completion | {"stream": True}),
        "tgi": ("/generate_stream", {"inputs": "The boats are past", "parameters": {"max_new_tokens": 4}}),
        "refused": ("/generate", {"inputs": "The boats", "parameters": {"max_new_tokens": 99999}}),
        "failed": ("/generate", {"inputs": f"a {NAN} b", "parameters": {"max_new_tokens": 4}}),
        "unread": ("/v1/chat/completions", {"messages": 3}),
        "nowhere": ("/nowhere", {}),
        "tokens": ("/tokenize", {"inputs": "The boats are past"}),
    }
    with Server("--model-id", trap, *flags) as server:
        for name, (path, body) in requests.items():
            server.client.post(path, body, headers={"x-request-id": name})
        body = {"inputs": "The boats", "parameters": {"max_new_tokens": 900}}
        with server.client.http.stream(
            "POST", "/generate_stream", json=body, headers={"x-request-id": "left"}
        ) as response:
            next(events_of(response))
        server.client.get("/health")
    entries = [json.loads(line) for line in server.lines if line.startswith("{")]
    logged = [entry["fields"] for entry in entries if entry["message"] == "request finished"]
    assert sorted(fields["request_id"] for fields in logged) == sorted([*requests, "left"])
    assert "boats" not in json.dumps(logged)
    lines = {fields["request_id"]: fields for fields in logged}
    reasons = {name: fields["reason"] for name, fields in lines.items()}
    assert reasons["whole"] == reasons["streamed"] == reasons["tgi"] == "length"
    assert (reasons["refused"], reasons["failed"], reasons["unread"]) == ("validation", "generation", "validation")
    assert (reasons["nowhere"], reasons["tokens"], reasons["left"]) == ("not_found", "complete", "client_disconnected")
    for name in ("whole", "streamed", "tgi"):
        fields = lines[name]
        assert fields["route"] == requests[name][0]
        assert fields["generated_tokens"] == 4
        assert fields["prompt_tokens"] == lines["whole"]["prompt_tokens"] > 0
        assert 0 <= fields["queue_ms"] <= fields["first_token_ms"] <= fields["total_ms"]
    assert lines["nowhere"]["route"] == "unknown"


def test_requests_are_not_logged_by_default(trap: Path) -> None:
    with Server("--model-id", trap, "--dtype", "float32", "--trust-remote-code", "--json-output") as server:
        server.client.generate("The boats", max_new_tokens=2)
    assert "request finished" not in server.log()
