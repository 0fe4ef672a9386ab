"""Puts Gridwork's own packages and the shard's program into `--out`, the folder of a Python environment.

Times become whole seconds, modules are compiled without a check of their sources, and the import structure of
Transformers is cached, as `make python` does.
"""

import argparse
import os
import py_compile
import shutil
import subprocess
import sys
import sysconfig
from compileall import compile_dir
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    ROOT / "python" / "gridwork",
    ROOT / "server" / "gridwork_server",
    ROOT / "kernels" / "gridwork_kernels",
)
SERVER = """#!{python}
import sys

from gridwork_server.cli import main

sys.exit(main())
"""


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    installed = Path(sysconfig.get_path("purelib"))
    site = args.out / installed.relative_to(sys.prefix)
    for package in PACKAGES:
        shutil.copytree(package, site / package.name, ignore=shutil.ignore_patterns("__pycache__", "*.partial"))
    server = args.out / "bin" / "gridwork-server"
    server.parent.mkdir(parents=True)
    server.write_text(SERVER.format(python=Path(sys.prefix) / "bin" / "python"))
    server.chmod(0o755)
    subprocess.run(
        [sys.executable, "-m", "gridwork_server.startup.import_structure"],
        check=True,
        env=os.environ | {"PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    compiled = compile_dir(
        site,
        quiet=1,
        stripdir=str(site),
        prependdir=str(installed),
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )
    return 0 if compiled else 1


if __name__ == "__main__":
    sys.exit(main())
