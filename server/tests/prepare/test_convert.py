"""Tests `gridwork convert`: the folder computes what its source computes, and is complete or not there."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from gridwork_server.prepare.errors import PrepareError
from gridwork_server.prepare.model_folder import Options, convert

from .. import models
from .support import run
from .test_adapter import save_adapter
from .test_gguf import write_tiny_gguf

PROMPT = torch.tensor([models.prompts([20])[0]])


def greedy(model: Any) -> list[int]:
    """20 greedy tokens."""
    return model.eval().generate(PROMPT, do_sample=False, max_new_tokens=20, pad_token_id=0)[0, 20:].tolist()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = models.save("llama", tmp_path_factory.mktemp("models") / "base")
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture
def pickled(base: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(base, tmp_path / "pickled"))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def test_a_gguf_file_becomes_a_folder_with_the_same_tokens(tmp_path: Path) -> None:
    source, out = tmp_path / "tiny.gguf", tmp_path / "new" / "out"
    write_tiny_gguf(source)
    convert(str(source), out, Options())
    settings = {"gguf_file": source.name, "quantization_config": GgufConfig(dequantize=True), "dtype": torch.bfloat16}
    expected = greedy(AutoModelForCausalLM.from_pretrained(tmp_path, **settings))
    assert greedy(AutoModelForCausalLM.from_pretrained(out, use_safetensors=True)) == expected
    tokens = AutoTokenizer.from_pretrained(tmp_path, gguf_file=source.name)("t1 t")["input_ids"]
    assert AutoTokenizer.from_pretrained(out)("t1 t")["input_ids"] == tokens
    assert names(out.parent) == ["out"]


def test_pickled_weights_become_a_folder_with_the_same_tokens(base: Path, pickled: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(PrepareError, match=r"pytorch_model\.bin is a pickle file.*--allow-pickle-weights"):
        convert(str(pickled), out, Options())
    assert names(out) == []
    convert(str(pickled), out, Options(allow_pickle=True))
    expected = greedy(AutoModelForCausalLM.from_pretrained(base))
    assert greedy(AutoModelForCausalLM.from_pretrained(out, use_safetensors=True)) == expected
    assert (out / "tokenizer.json").is_file() and not list(out.glob("*.bin"))
    assert names(tmp_path) == ["out", "pickled"]


def test_an_adapter_becomes_a_folder_with_the_same_tokens(base: Path, tmp_path: Path) -> None:
    adapter = save_adapter(base, tmp_path / "adapter", target_modules=["q_proj", "v_proj", "down_proj"])
    out = tmp_path / "out"
    convert(str(adapter), out, Options())
    plain = AutoModelForCausalLM.from_pretrained(base)
    without = greedy(plain)
    expected = greedy(PeftModel.from_pretrained(plain, str(adapter)))
    assert expected != without
    assert greedy(AutoModelForCausalLM.from_pretrained(out, use_safetensors=True)) == expected
    assert names(tmp_path) == ["adapter", "out"]


def test_what_cannot_be_converted_is_refused_and_nothing_is_written(base: Path, pickled: Path, tmp_path: Path) -> None:
    allowed = Options(allow_pickle=True)
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    before = names(tmp_path)
    for out in ("full", "file", "link"):
        with pytest.raises(PrepareError, match="exists and is not an empty folder"):
            convert(str(pickled), tmp_path / out, allowed)
    (pickled / "tokenizer_config.json").symlink_to(full / "notes")
    with pytest.raises(PrepareError, match=r"tokenizer_config\.json is a link that leads out"):
        convert(str(pickled), tmp_path / "out", allowed)
    with pytest.raises(PrepareError, match="name a folder elsewhere"):
        convert(str(pickled), pickled / "out", allowed)
    with pytest.raises(PrepareError, match="there is nothing to convert"):
        convert(str(base), tmp_path / "out", allowed)
    write_tiny_gguf(full / "tiny.gguf")
    with pytest.raises(PrepareError, match=r"name one of its files, such as .*tiny\.gguf"):
        convert(str(full), tmp_path / "out", allowed)
    assert names(tmp_path) == before and (full / "notes").read_text() == "mine"


def test_a_conversion_that_fails_leaves_nothing(pickled: Path, tmp_path: Path) -> None:
    file = pickled / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(PrepareError, match=r"pytorch_model\.bin"):
        convert(str(pickled), tmp_path / "out", Options(allow_pickle=True))
    assert names(tmp_path) == ["pickled"]


# Stops in the middle of a conversion, with some of it written.
_STOPPING = """
import sys, time
from gridwork_server.prepare import pickle_weights
def slowly(file):
    print("half", flush=True)
    time.sleep(600)
pickle_weights.read_tensors = slowly
from gridwork.__main__ import main
sys.exit(main(["convert", *sys.argv[1:], "--allow-pickle-weights"]))
"""


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_conversion_leaves_no_folder_and_can_be_repeated(
    sent: signal.Signals, pickled: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", _STOPPING, str(pickled), str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None and process.stdout.readline() == "half\n"
    [partial] = [path for path in tmp_path.iterdir() if path.name.startswith(".out.new-")]
    assert (partial / "config.json").is_file() and not (tmp_path / "out").exists()
    process.send_signal(sent)
    process.communicate(timeout=60)
    assert process.returncode == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[sent]
    assert partial.exists() == (sent == signal.SIGKILL)
    assert not (tmp_path / "out").exists()
    done = run("convert", pickled, tmp_path / "out", "--allow-pickle-weights", home=tmp_path, program="gridwork")
    assert done.code == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "out")
    assert names(tmp_path) == ["out", "pickled"]


def test_a_running_conversion_is_left_alone_by_another(pickled: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", _STOPPING, str(pickled), str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "half\n"
        convert(str(pickled), tmp_path / "out", Options(allow_pickle=True))
        assert [path.name.startswith(".out.new-") for path in sorted(tmp_path.iterdir())] == [True, False, False]
    finally:
        process.kill()
        process.communicate()
