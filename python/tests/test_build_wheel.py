"""Wheels made here, with and without what a wheel must have."""

import re
import tomllib
import zipfile
from pathlib import Path

import gridwork_server
import pytest

import build_wheel
import gridwork
from build_wheel import KERNELS, ROOT, WheelError, check_library, describe


def whole() -> dict[str, bytes]:
    """The least that a wheel has."""
    names = ["gridwork/py.typed", "gridwork_server/_proto/shard_pb2.py", "gridwork_kernels/program_table.def"]
    names += [f"gridwork_kernels/{name}" for name in KERNELS]
    names += [f"gridwork-0.1.0.data/scripts/{name}" for name in ("gridwork", "gridwork-router", "gridwork-server")]
    names.append("gridwork-0.1.0.dist-info/METADATA")
    return {name: name.encode() * 1000 for name in names}


def write(folder: Path, files: dict[str, bytes]) -> Path:
    wheel = folder / "gridwork-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return wheel


def test_a_whole_wheel_is_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = whole()
    describe(write(tmp_path, files))
    printed = capsys.readouterr().out
    assert f"{len(files)} files" in printed
    for folder in ("gridwork", "gridwork_server", "gridwork_kernels", "gridwork-0.1.0.data"):
        assert re.search(rf"MiB  {re.escape(folder)}$", printed, re.MULTILINE)


@pytest.mark.parametrize("name", [name for name in whole() if "METADATA" not in name])
def test_a_wheel_that_lacks_a_part_is_refused(name: str, tmp_path: Path) -> None:
    files = whole()
    del files[name]
    with pytest.raises(WheelError, match=re.escape(Path(name).name)):
        describe(write(tmp_path, files))


def test_a_wheel_with_a_file_twice_or_of_nobody_is_refused(tmp_path: Path) -> None:
    files = whole()
    program = files["gridwork-0.1.0.data/scripts/gridwork-router"]
    with pytest.raises(WheelError, match=r"1 files are in .* twice"):
        describe(write(tmp_path, files | {"gridwork/gridwork-router": program}))
    with pytest.raises(WheelError, match="has tests,"):
        describe(write(tmp_path, files | {"tests/test_x.py": b""}))


def test_a_library_that_needs_newer_machines_is_refused() -> None:
    line = "0000000000000000      DF *UND*  0000000000000000 ({}) {}\n"
    check_library("_cpu_x.so", line.format("GLIBC_2.28", "log2") + line.format("GLIBCXX_3.4.22", "_ZNSt"))
    with pytest.raises(WheelError, match=r"_cpu_x\.so needs GLIBC 2\.32, and machines may have 2\.28"):
        check_library("_cpu_x.so", line.format("GLIBC_2.32", "pthread_x"))
    with pytest.raises(WheelError, match=r"GLIBCXX 3\.4\.30"):
        check_library("_cpu_x.so", line.format("GLIBCXX_3.4.30", "_ZNSt"))


def test_missing_kernels_are_told_before_anything_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(build_wheel.PACKAGES, "gridwork_kernels", tmp_path)
    monkeypatch.setattr(build_wheel, "KERNELS", ("_cpu_avx2.so",))
    with pytest.raises(WheelError, match=r"_cpu_avx2\.so .*kernels/build_cpu\.py"):
        build_wheel.gather(tmp_path)


def test_all_parts_have_one_version() -> None:
    version = tomllib.loads((ROOT / "python" / "pyproject.toml").read_text())["project"]["version"]
    workspace = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]["version"]
    assert gridwork.__version__ == gridwork_server.__version__ == workspace == version
