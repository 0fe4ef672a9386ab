"""A pack holds wheels that fit, and is refused where it is made when one does not."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from gpu_pack import lock, programs, wheels
from gpu_pack.__main__ import MAX_BYTES, check_size, size_of
from gpu_pack.target import PackError

Make = Callable[..., Path]

LOCK = """# made by a test
colorama==0.4.6 ; sys_platform == 'win32' \\
    --hash=sha256:aa
numpy==2.4.6 ; python_full_version < '3.12' \\
    --hash=sha256:bb
numpy==2.5.5 ; python_full_version >= '3.12' \\
    --hash=sha256:cc \\
    --hash=sha256:dd
    # via gguf
"""


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes a wheel with these requirements."""

    def make_wheel(name: str, requires: tuple[str, ...] = (), tag: str = "py3-none-any", extra: str = "") -> Path:
        file = tmp_path / f"{name}-1.0-{tag}.whl"
        with zipfile.ZipFile(file, "w") as archive:
            lines = ["Metadata-Version: 2.1", f"Name: {name}", "Version: 1.0"]
            lines += [f"Requires-Dist: {requirement}" for requirement in requires]
            archive.writestr(f"{name}-1.0.dist-info/METADATA", "\n".join(lines) + "\n")
            if extra:
                archive.writestr(extra, "")
        return file

    return make_wheel


def test_the_lock_is_read_for_the_machine_and_not_for_this_one(tmp_path: Path) -> None:
    file = tmp_path / "some.lock"
    file.write_text(LOCK)
    pinned = lock.read(file)
    assert list(pinned) == ["numpy"]
    assert pinned["numpy"].requirement == "numpy==2.5.5 --hash=sha256:cc --hash=sha256:dd"


def test_direct_requirements_are_names(tmp_path: Path) -> None:
    file = tmp_path / "some.in"
    file.write_text("# comment\ntorch>=2.15\nHuggingface_Hub  # with a comment\n")
    assert lock.roots(file) == ["torch", "huggingface-hub"]


def test_requirements_that_nothing_brings_are_found(make: Make) -> None:
    files = [
        make("first", ("torch>=2.0", "second", "third; sys_platform == 'win32'", "fourth; extra == 'more'")),
        make("second", ("fifth>=1; python_version >= '3.12'",)),
    ]
    found = [wheels.read(file) for file in files]
    assert wheels.missing(found) == {"fifth": "second"}
    assert wheels.needs_of_machine(found) == ["torch>=2.0 (by first)"]


def test_a_requirement_of_another_version_is_refused(make: Make) -> None:
    found = [wheels.read(make("first", ("second>=2",))), wheels.read(make("second"))]
    with pytest.raises(PackError, match=r"first requires second>=2, and the lock has 1\.0"):
        wheels.missing(found)


def test_a_requirement_without_a_pin_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PackError, match="requires absent, which no lock pins"):
        wheels.gather(["absent"], {}, ["pip"], tmp_path)


@pytest.mark.parametrize(
    "tag",
    ["cp311-cp311-manylinux_2_17_x86_64", "cp312-cp312-manylinux_2_34_x86_64", "cp312-cp312-macosx_11_0_arm64"],
)
def test_a_wheel_that_does_not_fit_is_refused(tag: str, make: Make) -> None:
    with pytest.raises(PackError, match=r"does not fit Python 3\.12 on manylinux_2_31_x86_64"):
        wheels.read(make("other", tag=tag))


@pytest.mark.parametrize(
    "tag",
    ["cp312-cp312-manylinux_2_17_x86_64.manylinux2014_x86_64", "cp39-abi3-manylinux_2_28_x86_64", "py2.py3-none-any"],
)
def test_a_wheel_that_fits_is_read(tag: str, make: Make) -> None:
    assert wheels.read(make("fitting", tag=tag)).name == "fitting"


def test_a_wheel_that_only_an_installer_can_place_is_refused(make: Make) -> None:
    with pytest.raises(PackError, match="has files for purelib"):
        wheels.read(make("placed", extra="placed-1.0.data/purelib/placed.py"))
    assert wheels.read(make("scripted", extra="scripted-1.0.data/scripts/run")).name == "scripted"


def test_a_download_that_fails_says_why(tmp_path: Path) -> None:
    pip = tmp_path / "pip"
    pip.write_text("#!/bin/sh\necho 'No matching distribution found' >&2\nexit 1\n")
    pip.chmod(0o755)
    pinned = {"one": lock.Pinned("one", "one==1.0", ("sha256:aa",))}
    with pytest.raises(PackError, match=r"no wheels for Python 3\.12 .*No matching distribution found"):
        wheels.gather(["one"], pinned, [str(pip)], tmp_path)


def test_the_glibc_of_programs_is_that_of_their_newest_symbol() -> None:
    symbols = "DF *UND* 0 GLIBC_2.2.5 read\nDF *UND* 0 (GLIBC_2.28) statx\nDF *UND* 0 GLIBC_2.9 pipe2\n"
    assert programs.glibc_of(symbols) == (2, 28)
    assert programs.glibc_of("") == (0,)


def test_programs_for_a_newer_glibc_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "symbols", lambda program: "GLIBC_2.34 pthread_create")
    with pytest.raises(PackError, match=r"need glibc 2\.34, and the machine may have 2\.31"):
        programs.check(tmp_path)


def test_a_pack_that_is_too_large_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_bytes(b"1234")
    assert size_of(tmp_path) == 4
    check_size(MAX_BYTES)
    with pytest.raises(PackError, match="at most 60 travel"):
        check_size(MAX_BYTES + 1)
