"""Tests `gridwork-server prepare` with folders, wrong paths, and models of the hub that are cached or not."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gridwork_server.prepare.hub import wanted_files

from .fake_hub import COMMIT, FakeHub, running
from .support import run

MODEL = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": b"w" * 200_000,
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "modeling_own.py": b"raise SystemExit",
    "README.md": b"hello",
    "pytorch_model.bin": b"p" * 1000,
    "onnx/model.safetensors": b"o" * 1000,
    "consolidated.safetensors": b"c" * 1000,
}
WANTED = {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"}


def put_in_cache(home: Path, name: str, files: dict[str, bytes], listing: list[str] | None = None) -> Path:
    """Lays out a model in the hub's cache as the hub library does."""
    storage = home / "hub" / f"models--{name.replace('/', '--')}"
    snapshot = storage / "snapshots" / COMMIT
    for file, data in files.items():
        (snapshot / file).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / file).write_bytes(data)
    (storage / "refs").mkdir()
    (storage / "refs" / "main").write_text(COMMIT)
    if listing is not None:
        (storage / "trees").mkdir()
        entries = {file: {"size": 1, "blob_id": "0" * 40} for file in listing}
        (storage / "trees" / f"{COMMIT}.json").write_text(json.dumps({"format_version": 1, "files": entries}))
    return snapshot


def test_a_folder_is_returned_unchanged(tmp_path):
    outcome = run("prepare", "--model-id", tmp_path, home=tmp_path)
    assert outcome.code == 0
    assert outcome.model_path == tmp_path


@pytest.mark.parametrize(
    "model_id", ["/no/such/folder", "./no-such", "~/no-such", "a/b/c", "no-such.gguf", "org/x.gguf"]
)
def test_missing_paths_are_reported(tmp_path, model_id):
    outcome = run("prepare", "--model-id", model_id, home=tmp_path)
    assert outcome.code == 1
    assert outcome.stdout == ""
    assert f"{model_id}: there is no such file or folder" in outcome.fatal


def test_invalid_model_ids_are_reported(tmp_path):
    assert "neither a folder" in run("prepare", "--model-id", "what is this", home=tmp_path).fatal
    (tmp_path / "weights.bin").touch()
    outcome = run("prepare", "--model-id", tmp_path / "weights.bin", home=tmp_path)
    assert "not a .gguf file" in outcome.fatal


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_a_cached_model_is_found_offline_quickly(tmp_path, revision):
    snapshot = put_in_cache(tmp_path, "org/tiny", MODEL)
    extra = [] if revision is None else ["--revision", revision]
    started = time.monotonic()
    outcome = run("prepare", "--model-id", "org/tiny", *extra, home=tmp_path, HF_HUB_OFFLINE="1")
    assert outcome.code == 0
    assert outcome.model_path == snapshot
    assert time.monotonic() - started < 5  # takes far less on an idle machine


def test_a_cached_model_is_used_without_asking_the_hub(tmp_path):
    put_in_cache(tmp_path, "org/tiny", MODEL, listing=list(MODEL))
    with running(FakeHub({"org/tiny": MODEL})) as hub:
        assert run("prepare", "--model-id", "org/tiny", home=tmp_path, HF_ENDPOINT=hub.url).code == 0
    assert hub.requests == []


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_cached_model_with_a_file_missing_is_completed(tmp_path, missing):
    files = {file: data for file, data in MODEL.items() if file in WANTED and file != missing}
    put_in_cache(tmp_path, "org/tiny", files, listing=list(MODEL))
    with running(FakeHub({"org/tiny": MODEL})) as hub:
        outcome = run("prepare", "--model-id", "org/tiny", home=tmp_path, HF_ENDPOINT=hub.url)
    assert outcome.code == 0
    assert (outcome.model_path / missing).read_bytes() == MODEL[missing]


def test_a_sharded_model_in_the_cache_needs_every_shard(tmp_path):
    index = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}).encode()
    files = {"config.json": b"{}", "model.safetensors.index.json": index, "model-1.safetensors": b"w"}
    files["tokenizer.json"] = b"{}"
    snapshot = put_in_cache(tmp_path, "org/sharded", files)
    arguments = ("prepare", "--model-id", "org/sharded")
    assert run(*arguments, home=tmp_path, HF_HUB_OFFLINE="1").code == 1
    (snapshot / "model-2.safetensors").touch()
    assert run(*arguments, home=tmp_path, HF_HUB_OFFLINE="1").code == 0


def test_pickled_weights_are_downloaded_only_if_allowed_and_needed():
    pickled = ["config.json", "pytorch_model.bin", "optimizer.pt", "tokenizer.model"]
    assert wanted_files(pickled, trust_remote_code=False) == ["config.json", "tokenizer.model"]
    allowed = wanted_files(pickled, trust_remote_code=False, allow_pickle=True)
    assert allowed == ["config.json", "pytorch_model.bin", "tokenizer.model"]
    both = [*pickled, "model.safetensors"]
    assert "pytorch_model.bin" not in wanted_files(both, trust_remote_code=False, allow_pickle=True)


@pytest.mark.parametrize("trusted", [False, True])
def test_only_needed_files_are_downloaded(tmp_path, trusted):
    extra = ["--trust-remote-code"] if trusted else []
    with running(FakeHub({"org/tiny": MODEL})) as hub:
        outcome = run("prepare", "--model-id", "org/tiny", *extra, home=tmp_path, HF_ENDPOINT=hub.url)
    assert outcome.code == 0, outcome.log
    files = {str(path.relative_to(outcome.model_path)) for path in outcome.model_path.rglob("*") if path.is_file()}
    assert files == WANTED | ({"modeling_own.py"} if trusted else set())
    assert (outcome.model_path / "model.safetensors").read_bytes() == MODEL["model.safetensors"]
    assert any("0.2 MB" in str(line["message"]) for line in outcome.log)
    again = run("prepare", "--model-id", "org/tiny", *extra, home=tmp_path, HF_HUB_OFFLINE="1")
    assert again.model_path == outcome.model_path


@pytest.mark.parametrize("file", ["config.json", "hf_quant_config.json"])
def test_unreadable_weights_are_refused_before_download(tmp_path, file):
    declared = {"quantization_config": {"quant_method": "exl2"}, "quantization": {"quant_algo": "FP8"}}
    files = MODEL | {file: json.dumps({"model_type": "llama"} | declared).encode()}
    with running(FakeHub({"org/small": files})) as hub:
        outcome = run("prepare", "--model-id", "org/small", home=tmp_path, HF_ENDPOINT=hub.url)
        assert not [request for request in hub.requests if "safetensors" in request]
    assert outcome.code == 1
    assert "org/small cannot be served" in outcome.fatal and file in outcome.fatal
    assert ("exl2" if file == "config.json" else "modelopt FP8") in outcome.fatal


def test_another_cache_folder_is_used_when_given(tmp_path):
    with running(FakeHub({"tiny": MODEL})) as hub:
        outcome = run(
            *("prepare", "--model-id", "tiny", "--cache-dir", tmp_path / "elsewhere"),
            home=tmp_path / "home",
            HF_ENDPOINT=hub.url,
        )
        assert outcome.model_path.is_relative_to(tmp_path / "elsewhere")
        by_variable = run(
            *("prepare", "--model-id", "tiny"),
            home=tmp_path / "home",
            HUGGINGFACE_HUB_CACHE=str(tmp_path / "elsewhere"),
            HF_HUB_OFFLINE="1",
        )
    assert by_variable.model_path == outcome.model_path


def test_offline_error_says_what_to_do(tmp_path):
    outcome = run("prepare", "--model-id", "org/tiny", home=tmp_path, HF_HUB_OFFLINE="1")
    assert outcome.code == 1
    assert "org/tiny (revision main) is not in the cache" in outcome.fatal
    assert "HF_HUB_OFFLINE" in outcome.fatal
    assert "Traceback" not in outcome.fatal


def test_network_error_says_what_to_do(tmp_path):
    outcome = run("prepare", "--model-id", "gpt2", home=tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert outcome.code == 1
    assert "the hub cannot be reached" in outcome.fatal
    assert "local folder" in outcome.fatal


def test_hub_errors_have_distinct_messages(tmp_path):
    bin_only = {"config.json": b"{}", "pytorch_model.bin": b"p", "tokenizer.json": b"{}"}
    gguf_only = {"README.md": b"", "tiny.Q4_0.gguf": b"g"}
    models = {"org/tiny": MODEL, "org/gated": MODEL, "org/bin": bin_only, "org/gguf": gguf_only}
    expected = {
        ("org/unknown", "main"): "there is no model org/unknown",
        ("org/tiny", "v9"): "has no revision v9",
        ("org/gated", "main"): "accept their terms",
        ("org/bin", "main"): "pytorch_model.bin, a pickle file",
        ("org/gguf", "main"): ".gguf files",
    }
    with running(FakeHub(models, gated={"org/gated"})) as hub:
        for (name, revision), words in expected.items():
            outcome = run(*("prepare", "--model-id", name, "--revision", revision), home=tmp_path, HF_ENDPOINT=hub.url)
            assert outcome.code == 1
            assert words in outcome.fatal
            assert outcome.stdout == ""


def test_an_unwritable_cache_is_reported(tmp_path):
    (tmp_path / "file").touch()
    with running(FakeHub({"org/tiny": MODEL})) as hub:
        outcome = run(
            *("prepare", "--model-id", "org/tiny", "--cache-dir", tmp_path / "file" / "cache"),
            home=tmp_path,
            HF_ENDPOINT=hub.url,
        )
    assert outcome.code == 1
    assert "cannot store org/tiny" in outcome.fatal


def test_command_line_does_not_import_torch():
    code = "import sys, gridwork_server.cli; print([name for name in ('torch', 'transformers') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
