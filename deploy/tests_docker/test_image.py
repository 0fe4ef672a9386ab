"""The image, run as users run it, without a network but loopback: `make test-docker` builds it and names it in
$GRIDWORK_TEST_IMAGE. Clients run inside the container, with its Python.
"""

import json
import os
import re
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SMOLLM2 = ROOT / ".cache" / "models" / "SmolLM2-135M-Instruct"
PYTHON = "/opt/gridwork/bin/python"
PATIENCE_S = 300.0

ASK = """
import json, sys, urllib.request
path, body = sys.argv[1], sys.argv[2]
headers = {"Content-Type": "application/json"}
request = urllib.request.Request("http://127.0.0.1:80" + path, body.encode() or None, headers)
with urllib.request.urlopen(request) as answer:
    for line in answer:
        print(line.decode(), end="", flush=True)
"""


def docker(*words: str | Path, code: int | None = 0) -> str:
    """Runs docker, and returns what it prints."""
    command = [os.environ.get("DOCKER", "docker"), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert code is None or done.returncode == code, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def image() -> str:
    """Name of the image under test."""
    if not (name := os.environ.get("GRIDWORK_TEST_IMAGE")):
        pytest.fail("GRIDWORK_TEST_IMAGE is not set; run `make test-docker`", pytrace=False)
    return name


class Container:
    """A server with SmolLM2, which is ready."""

    def __init__(self, image: str, *flags: str) -> None:
        self.name = f"gridwork-test-{uuid.uuid4().hex[:12]}"
        options = ["--detach", "--name", self.name, "--network", "none", "--shm-size", "1g"]
        options += ["--volume", f"{SMOLLM2}:/data/model:ro", *flags]
        docker("run", *options, image, "--model-id", "/data/model")

    def wait_ready(self) -> None:
        """Waits until `gridwork health` succeeds."""
        deadline = time.monotonic() + PATIENCE_S
        while self.run("gridwork", "health", code=None) != "http://127.0.0.1:80 is ready\n":
            assert time.monotonic() < deadline and self.state()["Running"], self.log()
            time.sleep(0.2)

    def run(self, *words: str, code: int | None = 0) -> str:
        """Runs a program in the container, and returns what it prints."""
        return docker("exec", self.name, *words, code=code)

    def ask(self, path: str, body: dict[str, Any] | None = None) -> str:
        """The answer to a request that a client in the container sends."""
        return self.run(PYTHON, "-c", ASK, path, "" if body is None else json.dumps(body))

    def tokens(self, count: int) -> list[int]:
        """Greedy tokens."""
        body = {"inputs": "The sea is", "parameters": {"max_new_tokens": count, "details": True}}
        return [token["id"] for token in json.loads(self.ask("/generate", body))["details"]["tokens"]]

    def processes(self) -> dict[int, str]:
        """Command lines of all processes but this question's, by process id."""
        program = (
            "import pathlib\n"
            "for path in pathlib.Path('/proc').glob('[0-9]*'):\n"
            "    words = path.joinpath('cmdline').read_bytes().decode().split('\\0')\n"
            "    print(path.name, ' '.join(words).replace('\\n', ' '))"
        )
        lines = [line.split(" ", 1) for line in self.run(PYTHON, "-c", program).splitlines()]
        return {int(pid): command for pid, command in lines if "pathlib" not in command}

    def state(self) -> dict[str, Any]:
        """State of the container, by Docker."""
        state: dict[str, Any] = json.loads(docker("inspect", "--format", "{{json .State}}", self.name))
        return state

    def log(self) -> str:
        """Log of the server so far."""
        return docker("logs", self.name)

    def remove(self) -> None:
        """Ends and removes the container."""
        docker("rm", "--force", self.name, code=None)


@pytest.fixture
def container(image: str) -> Iterator[Container]:
    """A container that may write to nothing but /tmp and a volume, without any capability."""
    server = Container(
        image, "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"
    )
    try:
        server.wait_ready()
        yield server
    finally:
        server.remove()


def test_it_answers_as_a_user_without_rights_on_a_file_system_that_is_read_only(container: Container) -> None:
    assert len(container.tokens(8)) == 8
    status = container.run(PYTHON, "-c", "print(open('/proc/1/status').read())")
    assert re.search(r"^Uid:\s+1000\s+1000", status, re.MULTILINE)
    assert re.search(r"^CapEff:\s+0+$", status, re.MULTILINE)
    writing = "try:\n    open('{}/x', 'w')\nexcept OSError as error:\n    print(error.errno)"
    for folder, printed in (("/opt/gridwork", "30\n"), ("/tmp", "")):
        assert container.run(PYTHON, "-c", writing.format(folder)) == printed


def test_it_is_healthy_and_says_what_it_is(container: Container, image: str) -> None:
    health = json.loads(docker("inspect", "--format", "{{json .Config.Healthcheck}}", image))
    assert health["Test"] == ["CMD", "gridwork", "health"]
    labels = json.loads(docker("inspect", "--format", "{{json .Config.Labels}}", image))
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert "gridwork" in container.processes()[1]


def test_a_stream_in_flight_is_finished_before_the_container_stops(container: Container) -> None:
    answers: list[str] = []
    body = {"inputs": "Once upon a time", "parameters": {"max_new_tokens": 200}, "stream": True}
    client = threading.Thread(target=lambda: answers.append(container.ask("/generate_stream", body)))
    before = container.ask("/metrics")
    assert "gridwork_running_sequences 0" in before
    client.start()
    deadline = time.monotonic() + PATIENCE_S
    while "gridwork_running_sequences 1" not in container.ask("/metrics"):
        assert time.monotonic() < deadline
    docker("kill", "--signal", "TERM", container.name)
    client.join(PATIENCE_S)
    # The last event of a whole stream has the text.
    assert '"generated_text":"' in answers[0].strip().splitlines()[-1]
    assert docker("wait", container.name).strip() == "0"
    assert "SIGTERM" in container.log()


def test_docker_stop_ends_it_well(container: Container) -> None:
    docker("stop", "--time", "60", container.name)
    state = container.state()
    assert (state["ExitCode"], state["OOMKilled"]) == (0, False)


def test_a_killed_shard_is_started_again(container: Container) -> None:
    expected = container.tokens(12)
    [shard] = [pid for pid, command in container.processes().items() if "gridwork-server" in command]
    container.run(PYTHON, "-c", f"import os, signal; os.kill({shard}, signal.SIGKILL)")
    deadline = time.monotonic() + PATIENCE_S
    while shard in container.processes():
        assert time.monotonic() < deadline
    container.wait_ready()
    assert container.tokens(12) == expected
    assert container.state()["Running"]


def test_orphans_are_reaped(container: Container) -> None:
    program = (
        "import os, subprocess, sys\n"
        "done = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(0.2)'])\n"
        "print(done.pid)"
    )
    orphan = int(container.run(PYTHON, "-c", program))
    deadline = time.monotonic() + PATIENCE_S
    while orphan in container.processes():
        assert time.monotonic() < deadline


def test_start_up_caches_are_those_of_this_image(container: Container) -> None:
    program = "from gridwork_server.startup import import_structure; print(import_structure._read_cache() is not None)"
    assert container.run(PYTHON, "-c", program) == "True\n"
    # Compiled modules that are not checked against their sources begin so (PEP 552).
    program = (
        "import gridwork_server, torch, transformers\n"
        "for module in (gridwork_server, torch, transformers):\n"
        "    print(open(module.__spec__.cached, 'rb').read()[4])"
    )
    assert container.run(PYTHON, "-c", program).split() == ["1", "1", "1"]


def test_kernels_for_every_cpu_and_no_compiler_or_tests_are_in_it(image: str) -> None:
    # As root, since some folders of Debian are closed to others.
    find = ("--rm", "--user", "0", "--entrypoint", "find", image, "/", "-xdev", "-type", "f")
    names = docker("run", *find).splitlines()
    kernels = {Path(name).name for name in names if "/_cpu_" in name}
    assert kernels == {f"_cpu_{isa}.so" for isa in ("avx2", "avx512", "avx512_vnni", "avx512_bf16", "amx")}
    assert not [name for name in names if re.search(r"/(cc1|gcc|g\+\+|ld|rustc|cargo|uv|pip)$", name)]
    assert not [name for name in names if re.search(r"site-packages/.*/tests?/|\.h$|\.a$", name)]
    libraries = [Path(name).name for name in names if re.search(r"/lib(torch|c10|cu)[^/]*\.so", name)]
    assert len(libraries) == len(set(libraries))


def test_the_bill_of_materials_names_what_is_in_it(image: str) -> None:
    text = docker("run", "--rm", "--entrypoint", "cat", image, "/usr/share/doc/gridwork/sbom.spdx.json")
    bill = json.loads(text)
    assert bill["spdxVersion"] == "SPDX-2.3"
    urls = {each["referenceLocator"] for package in bill["packages"] for each in package.get("externalRefs", [])}
    for wanted in ("pkg:pypi/torch@", "pkg:pypi/transformers@", "pkg:cargo/tokio@", "pkg:deb/debian/python3@"):
        assert any(url.startswith(wanted) for url in urls), wanted
    assert not any(url.startswith("pkg:cargo/proptest@") for url in urls)


def test_layers_and_their_sizes(image: str) -> None:
    lines = docker(
        "history", "--human=false", "--no-trunc", "--format", "{{.Size}}\t{{.CreatedBy}}", image
    ).splitlines()
    layers = [(int(size), made) for size, made in (line.split("\t", 1) for line in lines)]
    for size, made in reversed(layers):
        if size > 100_000:
            print(f"{size / 1e6:9,.1f} MB  {made[:100]}")
    torch = max(size for size, _ in layers)
    others = sum(size for size, _ in layers) - torch
    print(f"{others / 1e6:9,.1f} MB  everything but PyTorch")
    assert others < 500e6
