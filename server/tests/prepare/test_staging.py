"""Tests that folders are complete or absent, even when a build is killed or two run at once."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from gridwork_server.prepare.errors import PrepareError
from gridwork_server.prepare.staging import build_folder


def is_complete(folder: Path) -> bool:
    return (folder / "done").is_file()


def build(folder: Path) -> None:
    (folder / "part").write_text("x")
    (folder / "done").touch(mode=0o600)


def build_slowly(target: Path, builds: Path) -> None:
    def slowly(folder: Path) -> None:
        (folder / "part").write_text("x")
        with builds.open("a") as file:
            file.write("build\n")
        time.sleep(0.5)
        build(folder)

    build_folder(target, is_complete, slowly)


def test_a_folder_is_built_once_and_readable(tmp_path):
    target = tmp_path / "deep" / "model"
    assert build_folder(target, is_complete, build) == target
    assert sorted(path.name for path in target.iterdir()) == ["done", "part"]
    assert (target / "done").stat().st_mode & 0o444 == 0o444
    assert [path.name for path in target.parent.iterdir() if not path.name.endswith(".lock")] == ["model"]
    build_folder(target, is_complete, lambda _: pytest.fail("built again"))


def test_a_build_that_fails_leaves_nothing(tmp_path):
    def fails(folder: Path) -> None:
        build(folder)
        raise PrepareError("no")

    with pytest.raises(PrepareError, match="no"):
        build_folder(tmp_path / "model", is_complete, fails)
    assert [path.name for path in tmp_path.iterdir()] == [".model.lock"]
    build_folder(tmp_path / "model", is_complete, build)


def test_leftovers_of_a_killed_build_are_removed(tmp_path):
    process = multiprocessing.get_context("fork").Process(
        target=build_slowly, args=(tmp_path / "model", tmp_path / "builds")
    )
    process.start()
    while not (tmp_path / "builds").exists():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not (tmp_path / "model").exists()
    assert list(tmp_path.glob(".model.partial-*"))
    build_folder(tmp_path / "model", is_complete, build)
    assert is_complete(tmp_path / "model")
    assert not list(tmp_path.glob(".model.partial-*"))


def test_concurrent_builds_run_once(tmp_path):
    context = multiprocessing.get_context("fork")
    arguments = (tmp_path / "model", tmp_path / "builds")
    processes = [context.Process(target=build_slowly, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert (tmp_path / "builds").read_text() == "build\n"


def test_a_folder_with_other_content_is_refused(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "thesis.txt").write_text("years of work")
    with pytest.raises(PrepareError, match="does not hold a complete model"):
        build_folder(tmp_path / "model", is_complete, build)
    assert (tmp_path / "model" / "thesis.txt").read_text() == "years of work"


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "model").mkdir()
    assert is_complete(build_folder(tmp_path / "model", is_complete, build))


def test_an_unwritable_folder_is_reported(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(PrepareError, match="cannot write"):
        build_folder(tmp_path / "file" / "model", is_complete, build)
