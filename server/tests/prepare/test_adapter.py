"""Tests that a merged adapter computes what base and adapter compute together."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from gridwork_server.prepare.cli import Options, prepare
from gridwork_server.prepare.errors import PrepareError

from .. import models

TOKENS = torch.tensor([models.prompts([20])[0]])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = models.save("llama", tmp_path_factory.mktemp("models") / "base")
    (folder / "tokenizer.json").write_text('{"of": "base"}')
    return folder


@pytest.fixture
def folder(base: Path, tmp_path: Path) -> Path:
    """An adapter with random weights in place of the initial zeros."""
    return save_adapter(base, tmp_path / "adapter", target_modules=["q_proj", "v_proj", "down_proj"])


def save_adapter(base: Path, folder: Path, **settings: Any) -> Path:
    torch.manual_seed(3)
    config = LoraConfig(**{"r": 4, "lora_alpha": 16, "task_type": "CAUSAL_LM"} | settings)
    model: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    for name, parameter in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            parameter.data.normal_(std=0.3)
    model.save_pretrained(folder)
    return folder


def merged(folder: Path, **options: Any) -> Path:
    """Folder of the merged adapter."""
    return prepare(str(folder), Options(cache_dir=folder.parent / "cache", **options)).model_path


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(TOKENS).logits


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj", "v_proj", "down_proj"]},
        {"target_modules": "all-linear", "use_rslora": True},
        {"target_modules": ["q_proj"], "use_dora": True},
        {"target_modules": ["k_proj"], "modules_to_save": ["lm_head"]},
    ],
)
def test_a_merged_adapter_equals_base_and_adapter(settings: dict[str, Any], base: Path, tmp_path: Path) -> None:
    folder = save_adapter(base, tmp_path / "adapter", **settings)
    expected = logits(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(folder)))
    made = merged(folder)
    found = logits(AutoModelForCausalLM.from_pretrained(made))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(found, logits(AutoModelForCausalLM.from_pretrained(base)), atol=0.1)
    assert merged(folder) == made


def test_an_adapters_tokenizer_has_precedence(folder: Path) -> None:
    assert (merged(folder) / "tokenizer.json").read_text() == '{"of": "base"}'
    (folder / "tokenizer.json").write_text('{"of": "adapter"}')
    assert (merged(folder) / "tokenizer.json").read_text() == '{"of": "adapter"}'


def test_base_path_may_be_relative_to_the_adapter(folder: Path, base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "moved")
    set_config(folder, base_model_name_or_path="../moved")
    assert (merged(folder) / "model.safetensors").is_file()


def test_a_pickled_adapter_needs_the_flag(folder: Path) -> None:
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(PrepareError, match=r"adapter_model\.bin is a pickle file.*--allow-pickle-weights"):
        merged(folder)
    assert (merged(folder, allow_pickle=True) / "model.safetensors").is_file()


def test_a_base_with_own_code_needs_trust(folder: Path, base: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(base, tmp_path / "moved")
    config = json.loads((moved / "config.json").read_text())
    config |= {"model_type": "own-type", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    (moved / "config.json").write_text(json.dumps(config))
    (moved / "own.py").write_text(f"from pathlib import Path\nPath(r'{tmp_path / 'has-run'}').touch()\n")
    set_config(folder, base_model_name_or_path=str(moved))
    with pytest.raises(PrepareError, match=r"moved/config\.json has auto_map.*--trust-remote-code"):
        merged(folder)
    assert not (tmp_path / "has-run").exists()


def set_config(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_weights(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")


_KEY = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            lambda f: set_config(f, base_model_name_or_path="/no/such/base"),
            ["base_model_name_or_path", "/no/such/base"],
        ),
        (lambda f: set_config(f, base_model_name_or_path=None), ["base_model_name_or_path", "no base model is named"]),
        (lambda f: set_config(f, base_model_name_or_path="org/base"), ["base_model_name_or_path", "org/base"]),
        (lambda f: set_config(f, base_model_name_or_path=str(f)), ["base_model_name_or_path", "an adapter itself"]),
        (lambda f: set_config(f, peft_type="NOSUCH"), ["NOSUCH"]),
        (lambda f: set_config(f, target_modules=["nowhere"]), ["nowhere"]),
        (lambda f: (f / "adapter_config.json").write_text("{"), ["adapter_config.json is not valid JSON"]),
        (lambda f: (f / "adapter_config.json").write_text("{}"), ["adapter_config.json has no peft_type"]),
        (lambda f: (f / "adapter_model.safetensors").unlink(), ["adapter_model.safetensors", "again"]),
        (lambda f: (f / "adapter_model.safetensors").write_bytes(b"x"), ["adapter_model.safetensors is damaged"]),
        (lambda f: change_weights(f, lambda t: t.pop(_KEY)), ["lacks", "q_proj.lora_A"]),
        (lambda f: change_weights(f, lambda t: t.update({_KEY: torch.ones(4, 9)})), ["another model"]),
        (lambda f: change_weights(f, lambda t: t.update({"x.lora_A.weight": torch.ones(2)})), ["x.lora_A", "another"]),
    ],
)
def test_error_names_the_damage_of_an_adapter(
    damage: Any, words: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    damage(folder)
    with pytest.raises(PrepareError) as error:
        merged(folder)
    for word in words:
        assert word in str(error.value)


def test_a_quantized_base_is_refused(base: Path, tmp_path: Path) -> None:
    quantized = Path(shutil.copytree(base, tmp_path / "quantized"))
    config = json.loads((quantized / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "modelopt", "quant_algo": "FP8"}
    (quantized / "config.json").write_text(json.dumps(config))
    folder = save_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = str(quantized)
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(PrepareError, match=r"modelopt.*config\.json.*unquantized model as its base"):
        merged(folder)
