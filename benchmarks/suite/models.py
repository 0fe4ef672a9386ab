"""The models that are measured, as folders that every server loads: the default model, and a Llama of 1.2 billion and a
mixture of experts of 1.3 billion random weights. None ends an answer by itself, so that all servers give answers of the
lengths that were asked for without a field that only some of them know."""

import argparse
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from suite.paths import BENCHMARKS, ROOT
from suite.results import DTYPE_BYTES

TOKENIZER = ROOT / ".cache/models/SmolLM2-135M-Instruct"
FOLDER = ROOT / ".cache/benchmarks"


@dataclass(frozen=True)
class Model:
    name: str
    about: str
    part: float  # of a workload's requests; a slow model is asked fewer
    prefill_tokens_per_s: float  # on two cores, to foretell how long a run takes
    decode_tokens_per_s: float  # at one client
    workloads: tuple[str, ...] = ()  # those that it is measured with; none: all that are for it

    @property
    def folder(self) -> Path:
        return FOLDER / self.name


MODELS = {
    model.name: model
    for model in (
        Model("smollm2-135m", "SmolLM2-135M-Instruct", 1.0, 600, 25),
        Model("llama-1.2b", "Llama of 1.2 billion random weights", 0.25, 50, 4),
        Model("moe-1.3b", "mixture of experts of 1.3 billion random weights", 0.25, 100, 8, ("chat", "decode")),
    )
}


def prepare(model: Model) -> Path:
    """Makes the folder, once, in a process of its own (PyTorch's memory is gone afterwards)."""
    if not (model.folder / "config.json").exists():
        print(f"making {model.about} in {model.folder}", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "suite.models", model.name], check=True, cwd=BENCHMARKS)
    return model.folder


def weight_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def read_bytes(folder: Path) -> int:
    """Of the weights, what a token passes through: all, but of a mixture's experts those that are chosen."""
    config = json.loads((folder / "config.json").read_text())
    all_experts = config.get("num_experts") or config.get("num_local_experts")
    if not all_experts:
        return weight_bytes(folder)
    experts = sum(
        end - begin
        for file in folder.glob("*.safetensors")
        for name, (begin, end) in _tensors(file)
        if ".experts." in name
    )
    return weight_bytes(folder) - experts + experts * config["num_experts_per_tok"] // all_experts


def _tensors(file: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    """Names of a safetensors file's tensors, and where each begins and ends, in bytes."""
    with file.open("rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        header = json.loads(opened.read(length))
    for name, about in header.items():
        if name != "__metadata__":
            begin, end = about["data_offsets"]
            yield name, (begin, end)


def kv_bytes_per_token(folder: Path, dtype: str = "bfloat16") -> int:
    """Keys and values of a token in all layers."""
    config = json.loads((folder / "config.json").read_text())
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return 2 * DTYPE_BYTES[dtype] * config["num_hidden_layers"] * config["num_key_value_heads"] * head_dim


def _make(model: Model) -> None:
    partial = model.folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(model.folder, ignore_errors=True)
    partial.mkdir(parents=True)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(TOKENIZER / file, partial / file)
    if model.name == "smollm2-135m":
        os.link(TOKENIZER / "model.safetensors", partial / "model.safetensors")
        for file in ("config.json", "generation_config.json"):
            shutil.copy(TOKENIZER / file, partial / file)
    elif model.name == "llama-1.2b":
        _save_random_llama(partial)
    else:
        _save_random_experts(partial)
    _never_ends(partial)
    partial.rename(model.folder)


def _save_random_llama(folder: Path) -> None:
    """The shape of Llama 3.2 1B, with random weights in bfloat16."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        max_position_embeddings=16384,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        dtype="bfloat16",
    )
    torch.set_default_dtype(torch.bfloat16)
    LlamaForCausalLM(config).save_pretrained(folder)
    _fill_vocabulary(folder / "tokenizer.json", config.vocab_size)


def _save_random_experts(folder: Path) -> None:
    """The shape of Granite 3.0 1B A400M, 32 experts of which a token passes through 8, as Qwen3 has them, with random
    weights in bfloat16."""
    import torch
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    config = Qwen3MoeConfig(  # type: ignore[call-arg]
        vocab_size=49152,
        hidden_size=1024,
        intermediate_size=512,
        moe_intermediate_size=512,
        num_experts=32,
        num_experts_per_tok=8,
        norm_topk_prob=True,
        num_hidden_layers=24,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=64,
        max_position_embeddings=16384,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        dtype="bfloat16",
    )
    torch.set_default_dtype(torch.bfloat16)
    Qwen3MoeForCausalLM(config).save_pretrained(folder)


def _fill_vocabulary(tokenizer: Path, vocab_size: int) -> None:
    """Gives each id that the tokenizer does not know a word of its own, so that every token of an answer is text."""
    values = json.loads(tokenizer.read_text())
    vocab = values["model"]["vocab"]
    for index in range(len(vocab), vocab_size):
        letters = "".join(chr(ord("a") + index // 26**place % 26) for place in range(4))
        vocab["\u0120~" + letters] = index  # U+0120 is how byte-level vocabularies write a space
    tokenizer.write_text(json.dumps(values, ensure_ascii=False))


def _never_ends(folder: Path) -> None:
    for name in ("config.json", "generation_config.json"):
        values = json.loads((folder / name).read_text())
        values["eos_token_id"] = None
        (folder / name).write_text(json.dumps(values, indent=2))
    # Some servers ask the tokenizer.
    file = folder / "tokenizer_config.json"
    values = json.loads(file.read_text())
    values["eos_token"] = None
    file.write_text(json.dumps(values, indent=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Makes one of the benchmarks' models.")
    parser.add_argument("name", choices=MODELS)
    _make(MODELS[parser.parse_args().name])
