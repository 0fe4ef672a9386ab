"""The package as users get it: installed into a clean environment, used from a folder that is no checkout.

`make test-wheel` builds and installs it, and names the wheel and the environment in $GRIDWORK_TEST_WHEEL and
$GRIDWORK_TEST_ENVIRONMENT.
"""

import json
import os
import re
import signal
import socket
import subprocess
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
SMOLLM2 = ROOT / ".cache" / "models" / "SmolLM2-135M-Instruct"
PATIENCE_S = 600.0


def named(variable: str) -> Path:
    """The path in a variable that `make test-wheel` sets."""
    if not (value := os.environ.get(variable)):
        pytest.fail(f"{variable} is not set; run `make test-wheel`", pytrace=False)
    return Path(value).resolve()


class Installation:
    """The clean environment, and a home folder that marks every process of a test."""

    def __init__(self, folder: Path) -> None:
        self.bin = named("GRIDWORK_TEST_ENVIRONMENT") / "bin"
        self.home = folder
        self.variables = {"HOME": str(folder), "PATH": f"{self.bin}:/usr/bin:/bin", "TMPDIR": str(folder)}
        self.variables |= {"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "passive"}

    def run(self, *words: str | Path, code: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
        """Runs a program of the environment."""
        command = [str(self.bin / words[0]), *map(str, words[1:])]
        env = self.variables | variables
        done = subprocess.run(
            command, capture_output=True, text=True, env=env, cwd=self.home, timeout=PATIENCE_S, check=False
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done

    def python(self, program: str, **variables: str) -> str:
        return self.run("python", "-c", program, **variables).stdout.strip()

    def processes(self) -> list[str]:
        """Running processes of this test."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("HOME") == str(self.home) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(" ".join(process.cmdline()))
            except psutil.Error:
                continue
        return found

    @contextmanager
    def serving(self, *words: str | Path) -> Iterator[str]:
        """The address of a server, which must end with 0 and leave no process."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [str(self.bin / "gridwork"), *map(str, words), "--hostname", "127.0.0.1", "--port", str(port)]
        log = self.home / "log"
        with log.open("w") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file, env=self.variables, cwd=self.home)
        address = f"http://127.0.0.1:{port}"
        try:
            deadline = time.monotonic() + PATIENCE_S
            while not is_healthy(address):
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
            assert len(self.processes()) >= 3, "launcher, router and shard run"
            yield address
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_S) == 0, log.read_text()
            assert self.processes() == []
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def is_healthy(address: str) -> bool:
    try:
        return httpx.get(f"{address}/health", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    return Installation(tmp_path)


@pytest.fixture(scope="module")
def smollm2() -> Path:
    if not (SMOLLM2 / "model.safetensors").exists():
        pytest.fail(f"{SMOLLM2} is missing; run `make build`", pytrace=False)
    return SMOLLM2


def test_the_wheel_fits_every_python_and_has_no_path_of_this_machine() -> None:
    wheel = named("GRIDWORK_TEST_WHEEL")
    assert re.fullmatch(r"gridwork-[\d.]+-py3-none-manylinux_2_28_(x86_64|aarch64)\.whl", wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        [metadata] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        texts = [name for name in archive.namelist() if name.endswith((".py", ".json", "METADATA", "RECORD"))]
        for name in texts:
            assert str(ROOT).encode() not in archive.read(name), name
        text = archive.read(metadata).decode()
    assert "Requires-Python: >=3.11" in text and "Requires-Dist: torch" in text and "# Gridwork" in text


def test_all_programs_and_packages_are_those_of_the_environment(installation: Installation) -> None:
    version = installation.python("import importlib.metadata as m; print(m.version('gridwork'))")
    assert installation.run("gridwork", "--version").stdout.split()[-1] == version
    assert installation.run("gridwork-server", "--version").stdout.split()[-1] == version
    names = ("gridwork.llm", "gridwork_server.cli", "gridwork_kernels.replace")
    places = installation.python(f"import importlib.util as u; print(*(u.find_spec(n).origin for n in {names}))")
    environment = str(installation.bin.parent)
    assert all(place.startswith(environment) for place in places.split()), places
    lines = installation.run("gridwork", "env").stdout.splitlines()
    for line in (f"gridwork: {version}", f"Server: {installation.bin}/gridwork-server"):
        assert line in lines
    assert f"Router: {installation.bin}/gridwork-router" in lines


def has(name: str) -> bool:
    """True if this machine's processor has the instructions of a library of kernels."""
    flags = {"avx2": "avx2", "avx512": "avx512f", "avx512_vnni": "avx512_vnni", "avx512_bf16": "avx512_bf16"}
    found = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), flags=re.MULTILINE)
    return found is not None and flags.get(name, "amx_bf16") in found[1].split()


@pytest.mark.parametrize("capability", [None, "avx2", "avx512"])
def test_the_kernels_are_those_of_the_processor(installation: Installation, capability: str | None) -> None:
    if capability is not None and not has(capability):
        pytest.skip(f"this processor has no {capability}")
    variables = {"ATEN_CPU_CAPABILITY": capability} if capability else {}
    program = "from gridwork_kernels import cpu_library; print(cpu_library.instruction_set())"
    chosen = installation.python(program, **variables)
    expected = f"CPU kernels: {chosen}" if chosen != "None" else "CPU kernels: none"
    assert expected in installation.run("gridwork", "env", **variables).stdout


def test_every_library_of_kernels_that_the_processor_can_run_loads(installation: Installation) -> None:
    with zipfile.ZipFile(named("GRIDWORK_TEST_WHEEL")) as archive:
        names = [Path(name).name for name in archive.namelist() if name.endswith(".so")]
    usable = [name for name in names if has(name.removeprefix("_cpu_").removesuffix(".so"))]
    assert usable or not names
    for name in usable:
        program = f"""
from pathlib import Path
from gridwork_kernels import cpu_library
cpu_library._path = lambda: Path(cpu_library.__file__).with_name({name!r})
print(cpu_library.load())
"""
        assert f"_cpu_{installation.python(program)}.so" == name


def test_the_examples_of_the_page_run(installation: Installation, smollm2: Path) -> None:
    page = (ROOT / "docs" / "python.md").read_text()
    programs = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", page, flags=re.DOTALL)
    assert len(programs) >= 2
    for number, (program, expected) in enumerate(programs):
        path = installation.home / f"{number}.py"
        path.write_text(program.replace("HuggingFaceTB/SmolLM2-135M-Instruct", str(smollm2)))
        assert installation.run("python", path).stdout == expected
    deadline = time.monotonic() + 20
    while installation.processes() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert installation.processes() == []


def test_the_request_of_the_readme_is_answered(installation: Installation, smollm2: Path) -> None:
    readme = (ROOT / "README.md").read_text()
    [request] = re.findall(r"^\$ (curl .*?\}')$", readme, flags=re.DOTALL | re.MULTILINE)
    with installation.serving("--model-id", smollm2) as address:
        command = request.replace("http://localhost:3000", address)
        assert command != request
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    message = json.loads(done.stdout)["choices"][0]["message"]
    assert message["content"] == "The capital of France is Paris."


def test_a_model_is_served_by_its_path_alone(installation: Installation, smollm2: Path) -> None:
    with installation.serving("serve", smollm2, "--dtype", "float32") as address:
        assert httpx.get(f"{address}/info", timeout=PATIENCE_S).json()["model_dtype"] == "float32"


def test_a_model_is_checked_against_transformers(installation: Installation, smollm2: Path) -> None:
    text = installation.run("gridwork", "check", smollm2, "--dtype", "float32", "--max-model-len=512").stdout
    assert text.count("equal tokens") == 4 and "other tokens" not in text
    assert installation.processes() == []


def test_an_adapter_on_its_base_is_converted(installation: Installation, smollm2: Path) -> None:
    program = f"""
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({str(smollm2)!r})
get_peft_model(model, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")).save_pretrained("adapter")
"""
    installation.python(program)
    done = installation.run("gridwork", "convert", "adapter", "whole")
    assert done.stdout.strip() == "whole" and (installation.home / "whole" / "model.safetensors").is_file()
    assert "exists" in installation.run("gridwork", "convert", "adapter", "whole", code=1).stderr
    said = installation.run("gridwork", "download", "org/nowhere", code=1).stderr
    assert said.splitlines()[-1].startswith("error: org/nowhere")
