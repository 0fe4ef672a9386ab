"""Runs unmodified client programs in their own environments."""

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

from .paths import CLIENTS, ROOT

#: Generous, since importing such a library takes long on a busy machine.
TIMEOUT_S = 400.0


def run(*command: str | Path, environment: Path = CLIENTS, **options: Any) -> str:
    """Runs a program of the environment; returns its standard output. Fails with all of its output when it fails."""
    program, *arguments = (str(part) for part in command)
    if not (environment / "bin" / program).exists():
        pytest.fail(f"{environment} is missing; run `make clients clients-nightly vllm-client`", pytrace=False)
    env = {name: value for name, value in os.environ.items() if not name.upper().endswith("_PROXY")}
    # A library must reach nothing outside this machine, and import nothing from this checkout. The hub's endpoint is an
    # unused port, since HF_HUB_OFFLINE would keep huggingface_hub from this machine's servers as well.
    env.pop("HF_HUB_OFFLINE", None)
    env |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_DATASETS_OFFLINE": "1"}
    env |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_PROXY": "*", "PYTHONPATH": ""}
    env |= {"HAYSTACK_TELEMETRY_ENABLED": "False", "OPENAI_AGENTS_DISABLE_TRACING": "1"}
    with tempfile.TemporaryDirectory() as scratch:
        done = subprocess.run(
            [environment / "bin" / program, *arguments],
            cwd=options.pop("cwd", scratch),
            env=env | {"PATH": f"{environment / 'bin'}:{os.environ['PATH']}", "DSPY_CACHEDIR": scratch},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
            **options,
        )
    assert done.returncode == 0, f"{program} {arguments}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def script(name: str, *arguments: str, environment: Path = CLIENTS) -> Any:
    """The JSON that `integration-tests/clients/<name>.py` prints last."""
    output = run("python", ROOT / "integration-tests" / "clients" / f"{name}.py", *arguments, environment=environment)
    return json.loads(output.splitlines()[-1])
