"""A machine is set up from a pack, or refused with the reason."""

import hashlib
import json
import lzma
import os
import platform
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gpu_check import setup
from gpu_check.setup import SetupError, prepare

PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes a pack with one wheel and programs that print their names."""

    def make_pack(**changes: Any) -> Path:
        pack = tmp_path / "pack"
        for name in ("wheels", "bin"):
            (pack / name).mkdir(parents=True)
        wheel = pack / "wheels" / "parcel-1.0-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("parcel/__init__.py", "CONTENT = 'unpacked'\n")
        programs = ["gridwork", "gridwork-router"]
        for name in programs:
            program = lzma.compress(f"#!/bin/sh\necho {name}\n".encode())
            (pack / "bin" / f"{name}.xz").write_bytes(program)
        entry = {"file": wheel.name, "sha256": hashlib.sha256(wheel.read_bytes()).hexdigest()}
        contents = {"python": PYTHON, "architecture": platform.machine(), "glibc": "2.17", "programs": programs}
        (pack / setup.CONTENTS).write_text(json.dumps(contents | {"wheels": [entry]} | changes))
        return pack

    return make_pack


def test_wheels_and_programs_are_unpacked_once(make: Make, tmp_path: Path) -> None:
    pack, place = make(), tmp_path / "site"
    site = prepare(pack, place)
    environment = site.environment(is_interpreted=True)
    assert environment["TRITON_INTERPRET"] == "1"
    code = "import parcel; print(parcel.CONTENT)"
    assert _output([sys.executable, "-c", code], environment) == "unpacked"
    assert _output(["gridwork-router"], environment) == "gridwork-router"
    assert environment["GRIDWORK_BIN"] == str(place / "bin" / "gridwork")
    assert _output(["gridwork-server", "--version"], environment) == "0.1.0"
    (place / "packages" / "parcel" / "kept").touch()
    prepare(pack, place)
    assert (place / "packages" / "parcel" / "kept").exists(), "the second run unpacks nothing"
    contents = json.loads((pack / setup.CONTENTS).read_text())
    (pack / setup.CONTENTS).write_text(json.dumps(contents | {"commit": "another"}))
    prepare(pack, place)
    assert not (place / "packages" / "parcel" / "kept").exists(), "another pack replaces it"


def _output(command: list[str], environment: dict[str, str]) -> str:
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"python": "3.7"}, r"the pack is for 3\.7; run `make gpu-check PYTHON=python3\.7`"),
        ({"architecture": "riscv64"}, "the pack is for riscv64"),
        ({"glibc": "2.999"}, r"need glibc 2\.999 or newer"),
    ],
)
def test_a_machine_that_does_not_fit_is_refused(
    changes: dict[str, str], reason: str, make: Make, tmp_path: Path
) -> None:
    with pytest.raises(SetupError, match=reason):
        prepare(make(**changes), tmp_path / "site")
    assert not (tmp_path / "site").exists()


def test_a_damaged_wheel_is_refused_and_not_used_later(make: Make, tmp_path: Path) -> None:
    pack = make()
    (wheel,) = (pack / "wheels").iterdir()
    wheel.write_bytes(wheel.read_bytes()[:-1] + b"x")
    for _ in range(2):
        with pytest.raises(SetupError, match=r"parcel-1\.0-py3-none-any\.whl is damaged"):
            prepare(pack, tmp_path / "site")


def test_a_folder_that_is_no_pack_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"is no pack .*`make gpu-pack`"):
        prepare(tmp_path, tmp_path / "site")


def test_a_pack_with_another_contract_is_refused(make: Make, tmp_path: Path) -> None:
    pack = make()
    contract = pack / "source" / setup._CONTRACT
    contract.parent.mkdir(parents=True)
    contract.write_bytes((setup.ROOT / setup._CONTRACT).read_bytes())
    prepare(pack, tmp_path / "site")
    contract.write_text("another")
    with pytest.raises(SetupError, match=r"shard\.proto differs from the pack's"):
        prepare(pack, tmp_path / "site")


def test_without_a_pack_the_checkout_is_used(tmp_path: Path) -> None:
    site = prepare(None, tmp_path / "site")
    assert (site.packages, site.programs) == (None, setup.ROOT / "target" / "release")
    assert not (tmp_path / "site").exists()
    environment = site.environment(is_interpreted=False)
    assert environment.get("TRITON_INTERPRET") == os.environ.get("TRITON_INTERPRET")
