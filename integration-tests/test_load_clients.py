"""Load generators measure the server unmodified: every request succeeds, and their token counts are the server's."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.client_programs import run
from support.paths import CLIENTS_AIPERF, CLIENTS_GUIDELLM, LONG
from support.server import Server

REQUESTS = 6
OUTPUT_TOKENS = 8

#: Takes too long for every change.
LONG_FORM = pytest.mark.skipif(not LONG, reason="the long form runs it")


def tokens(server: Server) -> tuple[float, float]:
    """Tokens of prompts and answers that the server has counted so far."""
    metric = server.client.metric
    return metric("gridwork_prompt_tokens_total"), metric("gridwork_generated_tokens_total")


# --- guidellm -----------------------------------------------------------------------------------------------------


def guidellm(url: str, route: str, tokenizer: Path, folder: Path, *backend: str) -> list[Any]:
    """The successful requests of a run."""
    output = folder / "benchmarks.json"
    run(
        "guidellm",
        *("run", "--disable-console", "--backend"),
        ",".join(["kind=openai_http", f"target={url}", f"request_format={route}", *backend]),
        *("--profile", "kind=concurrent,streams=2", "--constraint", f"kind=max_requests,count={REQUESTS}"),
        *("--data", f"kind=synthetic_text,prompt_tokens=16,output_tokens={OUTPUT_TOKENS}"),
        *("--tokenizer", f"kind=hf_auto,model={tokenizer}", "--output", f"kind=json,path={output}"),
        environment=CLIENTS_GUIDELLM,
        cwd=folder,
    )
    (benchmark,) = json.loads(output.read_text())["benchmarks"]
    requests = benchmark["requests"]
    assert (len(requests["errored"]), len(requests["incomplete"])) == (0, 0), requests
    assert len(requests["successful"]) == REQUESTS
    return requests["successful"]


@LONG_FORM
@pytest.mark.parametrize("route", ["/v1/completions", "/v1/chat/completions", "/v1/responses"])
@pytest.mark.parametrize("stream", [True, False])
def test_guidellm_counts_as_the_server_does(
    smollm2_server: Server, smollm2: Path, tmp_path: Path, route: str, stream: bool
) -> None:
    before = tokens(smollm2_server)
    done = guidellm(smollm2_server.url, route, smollm2, tmp_path, f"stream={str(stream).lower()}")
    after = tokens(smollm2_server)
    for request in done:
        assert request["output_tokens"] == OUTPUT_TOKENS, request
    # The prefix cache saves prompt tokens, but they count all the same.
    assert after[1] - before[1] == sum(request["output_tokens"] for request in done)
    assert after[0] - before[0] == sum(request["prompt_tokens"] for request in done)


@LONG_FORM
def test_guidellm_measures_embeddings(minilm_server: Server, minilm: Path, tmp_path: Path) -> None:
    for request in guidellm(minilm_server.url, "/v1/embeddings", minilm, tmp_path):
        assert request["prompt_tokens"] >= 16


# --- aiperf -------------------------------------------------------------------------------------------------------


def aiperf(url: str, kind: str, tokenizer: Path, folder: Path, *flags: str) -> dict[str, Any]:
    """The summary of a run without errors."""
    run(
        "aiperf",
        *("profile", "--model", "any", "--url", url, "--endpoint-type", kind, "--tokenizer", str(tokenizer)),
        *("--request-count", str(REQUESTS), "--concurrency", "2", "--num-dataset-entries", str(REQUESTS)),
        *("--output-artifact-dir", str(folder), "--ui", "none", "--no-gpu-telemetry", *flags),
        environment=CLIENTS_AIPERF,
        cwd=folder,
    )
    (summary,) = folder.rglob("profile_export_aiperf.json")
    found: dict[str, Any] = json.loads(summary.read_text())
    assert found["request_count"]["avg"] == REQUESTS, found
    assert not found.get("error_summary"), found["error_summary"]
    return found


@pytest.mark.skipif(not LONG, reason="`make nightly` installs aiperf")
@pytest.mark.parametrize("kind", ["chat", "completions", "responses", "messages", "huggingface-generate"])
@pytest.mark.parametrize("stream", [True, False])
def test_aiperf_counts_as_the_server_does(
    smollm2_server: Server, smollm2: Path, tmp_path: Path, kind: str, stream: bool
) -> None:
    before = tokens(smollm2_server)
    flags = ["--streaming"] if stream else []
    lengths = ("--prompt-input-tokens-mean", "16", "--prompt-output-tokens-mean", str(OUTPUT_TOKENS))
    if kind != "huggingface-generate":  # It has no usage.
        flags.append("--use-server-token-count")
    found = aiperf(smollm2_server.url, kind, smollm2, tmp_path, *flags, *lengths)
    after = tokens(smollm2_server)
    generated = after[1] - before[1]
    if kind == "responses" and stream:
        # In streams it reads the usage of `response.completed` alone, and the limit of tokens makes them incomplete.
        assert generated >= REQUESTS
        return
    told = found["output_sequence_length"]["avg"] * REQUESTS
    if kind == "huggingface-generate":
        # It tokenizes the texts, in which a token may be another than the one that was generated.
        assert told == pytest.approx(generated, abs=REQUESTS)
    else:
        assert told == pytest.approx(generated)


@pytest.mark.skipif(not LONG, reason="`make nightly` installs aiperf")
def test_aiperf_measures_encoders(minilm_server: Server, reranker_server: Server, minilm: Path, tmp_path: Path) -> None:
    for kind, server in {
        "embeddings": minilm_server,
        "hf-tei-rankings": reranker_server,
        "cohere-rankings": reranker_server,
    }.items():
        folder = tmp_path / kind
        folder.mkdir()
        aiperf(server.url, kind, minilm, folder, "--prompt-input-tokens-mean", "16")
