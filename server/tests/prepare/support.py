"""Runs `gridwork-server prepare` as the launcher does, and commands of `gridwork`."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Outcome:
    """Output, log and exit code of a run."""

    code: int
    stdout: str
    log: list[dict[str, object]]
    stderr: str

    @property
    def model_path(self) -> Path:
        return Path(json.loads(self.stdout.splitlines()[-1])["model_path"])

    @property
    def fatal(self) -> str:
        """Message of the only fatal log line."""
        (message,) = [str(line["message"]) for line in self.log if line.get("fatal")]
        return message


def run(*arguments: object, home: Path, program: str = "gridwork_server", **environment: str) -> Outcome:
    """Runs a subcommand with its own hub cache under `home`. program: the package whose subcommand it is."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGINGFACE_"))}
    result = subprocess.run(
        [sys.executable, "-m", program, *map(str, arguments)],
        env={**inherited, "HF_HOME": str(home), **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    log = [json.loads(line) for line in result.stderr.splitlines() if line.startswith("{")]
    return Outcome(result.returncode, result.stdout, log, result.stderr)
