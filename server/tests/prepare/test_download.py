"""Tests `gridwork download` against a hub on this machine."""

import json
from pathlib import Path

import pytest

from .fake_hub import COMMIT, FakeHub, running
from .support import Outcome, run
from .test_prepare import MODEL, WANTED

ADAPTER = {
    "adapter_config.json": json.dumps({"peft_type": "LORA", "base_model_name_or_path": "org/base"}).encode(),
    "adapter_model.safetensors": b"a" * 1000,
}


def download(*arguments: object, home: Path, **environment: str) -> Outcome:
    return run("download", *arguments, home=home, program="gridwork", **environment)


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_files_of_a_server_are_fetched_and_their_folder_is_printed(tmp_path: Path) -> None:
    with running(FakeHub({"org/tiny": MODEL})) as hub:
        done = download("org/tiny", "--revision", COMMIT, "--cache-dir", tmp_path, home=tmp_path, HF_ENDPOINT=hub.url)
    assert done.code == 0, done.stderr
    folder = Path(done.stdout.strip())
    assert folder == tmp_path / "models--org--tiny" / "snapshots" / COMMIT
    assert names(folder) == WANTED
    assert "downloading org/tiny" in done.stderr and "{" not in done.stderr
    server = run("prepare", "--model-id", "org/tiny", "--revision", COMMIT, "--cache-dir", tmp_path, home=tmp_path)
    assert server.model_path == folder


def test_a_download_goes_on_where_it_stopped(tmp_path: Path) -> None:
    hub = FakeHub({"org/tiny": MODEL}, broken={"model.safetensors"})
    with running(hub):
        failed = download("org/tiny", home=tmp_path, HF_ENDPOINT=hub.url)
        assert failed.code == 1
        assert failed.stderr.splitlines()[-1].startswith("error: the hub answered 500 for org/tiny")
        assert failed.stdout == ""
        arrived = names(tmp_path / "hub" / "models--org--tiny" / "snapshots" / COMMIT)
        assert "config.json" in arrived and "model.safetensors" not in arrived
        hub.broken.clear()
        hub.requests.clear()
        done = download("org/tiny", "--huggingface-hub-cache", tmp_path / "hub", home=tmp_path, HF_ENDPOINT=hub.url)
    assert done.code == 0, done.stderr
    assert names(Path(done.stdout.strip())) == WANTED
    fetched = {request.rpartition("/")[2] for request in hub.requests if request.startswith("GET /org/tiny/resolve/")}
    assert fetched == WANTED - arrived


def test_an_adapter_comes_with_its_base(tmp_path: Path) -> None:
    with running(FakeHub({"org/adapter": ADAPTER, "org/base": MODEL})) as hub:
        done = download("org/adapter", home=tmp_path, HF_ENDPOINT=hub.url)
    assert done.code == 0, done.stderr
    assert names(Path(done.stdout.strip())) == set(ADAPTER)
    base = download("org/base", home=tmp_path, HF_HUB_OFFLINE="1")
    assert base.code == 0 and names(Path(base.stdout.strip())) == WANTED


@pytest.mark.parametrize(
    ("name", "flags", "offline", "words"),
    [
        ("org/nowhere", (), False, "there is no model org/nowhere"),
        ("org/tiny", ("--revision", "v9"), False, "has no revision v9"),
        ("org/tiny", (), True, "HF_HUB_OFFLINE is set"),
        ("./nowhere", (), False, "there is no such file or folder"),
        ("..", (), False, "on this machine"),
    ],
)
def test_what_cannot_be_fetched_says_why(
    name: str, flags: tuple[str, ...], offline: bool, words: str, tmp_path: Path
) -> None:
    variables = {"HF_HUB_OFFLINE": "1"} if offline else {}
    with running(FakeHub({"org/tiny": MODEL})) as hub:
        done = download(name, *flags, home=tmp_path, HF_ENDPOINT=hub.url, **variables)
    assert done.code == 1 and done.stdout == ""
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ") and words in last and "--model-id ./" not in last
    assert "Traceback" not in done.stderr
