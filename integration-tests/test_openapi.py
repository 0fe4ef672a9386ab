"""Generated requests get what the OpenAPI document promises: no route fails, and every answer has its schema."""

from collections.abc import Callable
from pathlib import Path

import pytest
from support import client_programs
from support.paths import CHECKERS, LONG
from support.server import Server

#: Properties of every answer, by the names of schemathesis.
CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
]

QUICK_FORM = ["--phases", "examples,fuzzing", "--max-examples", "4", "--workers", "2"]
LONG_FORM = ["--max-examples", "150"]


@pytest.mark.parametrize("kind", ["generator", "encoder"])
def test_generated_requests_get_documented_answers(kind: str, tiny: Callable[[str], Path], minilm: Path) -> None:
    model = tiny("llama") if kind == "generator" else minilm
    limits = ["--max-total-tokens", "64"] if kind == "generator" else []
    with Server("--model-id", model, "--dtype", "float32", *limits) as server:
        output = client_programs.run(
            *("st", "run", server.url + "/api-doc/openapi.json", "--seed", "1", *(LONG_FORM if LONG else QUICK_FORM)),
            *("--checks", ",".join(CHECKS), "--warnings", "off"),
            *("--suppress-health-check", "all", "--request-timeout", "60", "--continue-on-failure"),
            environment=CHECKERS,
        )
        assert "No issues found" in output, output
        failures = server.client.metrics()
        assert not [name for name in failures if 'kind="internal"' in name], failures
