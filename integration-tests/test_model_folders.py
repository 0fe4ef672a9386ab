"""Model folders with other tokenizers, pickled weights or an adapter. They are served as Transformers reads them, and
the folder itself stays unchanged."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file
from support.server import Server
from support.text import CORPUS

TinyModels = Callable[[str], Path]
PROMPT = "The harbour wakes before the town does. Café tables"
COUNT = 10


def expected(model: Any, tokenizer: Any) -> tuple[list[int], str]:
    """Transformers' greedy answer."""
    ids = torch.tensor([tokenizer.encode(PROMPT)])
    with torch.inference_mode():
        output = model.eval().generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=COUNT, do_sample=False, pad_token_id=0
        )
    answer = output[0, ids.shape[1] :].tolist()
    return answer, tokenizer.decode(answer, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def check_served(folder: Path, cache: Path, truth: tuple[list[int], str], *flags: str) -> None:
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    options: list[str | Path] = ["--model-id", folder, "--dtype", "float32", "--huggingface-hub-cache", cache, *flags]
    with Server(*options) as server:
        answer = server.client.generate(PROMPT, max_new_tokens=COUNT)
    assert (answer.token_ids, answer.text) == truth
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_a_sentencepiece_file_alone_is_a_tokenizer(tiny: TinyModels, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = shutil.copytree(tiny("llama"), tmp_path / "model")
    for name in ("tokenizer.json", "chat_template.jinja"):
        (folder / name).unlink()
    settings = '{"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "add_bos_token": true}'
    (folder / "tokenizer_config.json").write_text(settings)
    (tmp_path / "corpus.txt").write_text(CORPUS)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "corpus.txt"),
        model_prefix=str(tmp_path / "trained"),
        vocab_size=600,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (tmp_path / "trained.model").rename(folder / "tokenizer.model")
    truth = expected(AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))
    check_served(folder, tmp_path / "cache", truth)


def test_pickled_weights_are_served_when_allowed(tiny: TinyModels, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = shutil.copytree(tiny("qwen2"), tmp_path / "model")
    truth = expected(AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    check_served(folder, tmp_path / "cache", truth, "--allow-pickle-weights")


def test_an_adapter_is_served_on_its_base(tiny: TinyModels, tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = tiny("llama")
    torch.manual_seed(5)
    config = LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj", "up_proj"], task_type="CAUSAL_LM")
    adapted: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.2)
    folder = tmp_path / "adapter"
    adapted.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(base)
    plain: Any = AutoModelForCausalLM.from_pretrained(base)
    without = expected(plain, tokenizer)
    truth = expected(PeftModel.from_pretrained(plain, str(folder)), tokenizer)
    assert truth != without
    check_served(folder, tmp_path / "cache", truth)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "adapter_model.bin"])
def test_a_harmful_pickle_is_refused_and_does_nothing(name: str, tiny: TinyModels, tmp_path: Path) -> None:
    import os

    class Harmful:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'has-run'}",)

    folder = tmp_path / "model"
    if name == "pytorch_model.bin":
        shutil.copytree(tiny("llama"), folder)
        (folder / "model.safetensors").unlink()
    else:
        folder.mkdir()
        config = '{"peft_type": "LORA", "base_model_name_or_path": "%s", "target_modules": ["q_proj"], "r": 4}'
        (folder / "adapter_config.json").write_text(config % tiny("llama"))
    torch.save({"lora_A.weight": Harmful()}, folder / name)
    for flags, words in (((), ["--allow-pickle-weights", name]), (("--allow-pickle-weights",), [name, "system"])):
        server = Server("--model-id", folder, "--huggingface-hub-cache", tmp_path / "cache", *flags)
        server.start()
        try:
            assert server.wait_exit(timeout_s=60) > 0
            server.assert_nothing_survives()
        finally:
            server.kill()
        for word in words:
            assert word in server.log(), server.log()
        assert "Traceback" not in server.log()
        assert not (tmp_path / "has-run").exists()
