"""Paths of the checkout, the built launcher, models and tools."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

#: The launcher under test.
GRIDWORK = Path(os.environ.get("GRIDWORK_BIN", ROOT / "target" / "release" / "gridwork"))

#: SmolLM2-135M-Instruct, as `make build` prepares it.
SMOLLM2 = Path(os.environ.get("GRIDWORK_TEST_MODEL", ROOT / ".cache" / "models" / "SmolLM2-135M-Instruct"))

#: all-MiniLM-L6-v2, as `make encoder-model` fetches it.
MINILM = ROOT / ".cache" / "models" / "all-MiniLM-L6-v2"

#: Environments of client libraries, as `make clients` installs them.
CLIENTS = ROOT / ".cache" / "clients"
CLIENTS_AGENTS = ROOT / ".cache" / "clients-agents"
CLIENTS_STRUCTURED = ROOT / ".cache" / "clients-structured"
CLIENTS_GUIDELLM = ROOT / ".cache" / "clients-guidellm"

#: aiperf, as `make clients-nightly` installs it.
CLIENTS_AIPERF = ROOT / ".cache" / "clients-aiperf"

#: Programs that check the API, in an environment of their own, and the JSON Schema Test Suite; `make checkers` installs
#: both.
CHECKERS = ROOT / ".cache" / "checkers"
JSON_SCHEMA_SUITE = CHECKERS / "json-schema-suite"

#: Judges texts by the grammars of JSON schemas.
JUDGE = GRIDWORK.parent / "gridwork-judge"

#: vLLM for CPU with its benchmark client, as `make vllm-client` installs it.
VLLM = ROOT / ".cache" / "peers" / "vllm"

#: Folder for reference answers, which are kept between runs.
REFERENCE_CACHE = ROOT / ".cache" / "tests" / "reference"

#: Whether to run the long forms of the tests (`make nightly`).
LONG = os.environ.get("GRIDWORK_TEST_LONG", "") not in ("", "0")
