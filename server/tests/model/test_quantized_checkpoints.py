"""Tests quantized checkpoints: a model computes with the weights that they represent, or it is refused with the method
and the file that declares it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file

from gridwork_kernels import cpu_library
from gridwork_server.checkpoint import quantized_checkpoint
from gridwork_server.config import ShardConfig
from gridwork_server.encoder import loading as encoder_loading
from gridwork_server.errors import ModelError
from gridwork_server.model import folder as model_folder
from gridwork_server.model import loading
from gridwork_server.model.task import Task
from gridwork_server.parallel.group import RankGroup

from .. import models
from ..damage import change_weights, set_config
from ..quantized import mxfp4, save_fp8

UP = "model.layers.1.mlp.up_proj"
TOKENS = torch.tensor([models.prompts([20])[0]])


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save("llama", tmp_path_factory.mktemp("models") / "sound")


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "model"))


def settings(folder: Path, **changes: Any) -> ShardConfig:
    return ShardConfig(**({"model_path": folder, "socket": "", "dtype": "float32"} | changes))


def load(folder: Path, **changes: Any) -> loading.LoadedModel:
    return loading.load(settings(folder, **changes), RankGroup())


def refusal(folder: Path, **changes: Any) -> str:
    with pytest.raises(ModelError) as error:
        load(folder, **changes)
    return str(error.value)


@torch.inference_mode()
def assert_equal_logits(folder: Path, plain: Path) -> None:
    model: Any = load(folder, model_impl="solo", fuse=False).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    torch.testing.assert_close(model(TOKENS).logits, models.plain(plain)(TOKENS).logits, rtol=1e-4, atol=1e-4)


def test_fp8_blocks_are_dequantized(folder: Path) -> None:
    plain = save_fp8(folder, block=16)
    assert_equal_logits(folder, plain)
    loaded = load(folder)
    assert loaded.path.name == "paged" and "weights of fp8 as float32" in loaded.notes


def test_fp8_experts_stored_one_by_one_are_dequantized(tmp_path: Path) -> None:
    folder = models.save("qwen3_moe", tmp_path / "model", moe_intermediate_size=48)
    assert_equal_logits(folder, save_fp8(folder, block=16))


def test_fp8_is_dequantized_on_cpu_despite_gpus(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = save_fp8(folder, block=16)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda *_device: (9, 0))
    assert_equal_logits(folder, plain)


@pytest.mark.skipif(cpu_library.load() is None, reason="no compiled kernels for this CPU")
def test_fp8_can_be_quantized_again(tmp_path: Path) -> None:
    folder = models.save("llama", tmp_path / "model", hidden_size=96, intermediate_size=96)
    save_fp8(folder, block=32)
    notes = load(folder, quantize="int8").notes
    assert "weights of fp8 as float32" in notes and "22 linear layers in int8" in notes


def test_mxfp4_experts_are_dequantized(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.GptOssConfig(
        **{"vocab_size": models.VOCAB, "hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 2},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "num_local_experts": 4},
        **{"num_experts_per_tok": 2, "eos_token_id": 2, "pad_token_id": 0, "max_position_embeddings": 256},
    )
    plain = tmp_path / "plain"
    transformers.GptOssForCausalLM(config).save_pretrained(plain)
    folder = Path(shutil.copytree(plain, tmp_path / "model"))
    for layer in range(2):
        name = f"model.layers.{layer}.mlp.experts"
        for projection, shape in (("gate_up_proj", (4, 64, 64)), ("down_proj", (4, 64, 32))):
            blocks, scales, values = mxfp4(*shape)
            change_weights(plain, lambda t, key=f"{name}.{projection}", v=values: t.update({key: v}))

            def quantize(tensors: dict[str, torch.Tensor], key: str, b: torch.Tensor, s: torch.Tensor) -> None:
                del tensors[key]
                tensors |= {f"{key}_blocks": b, f"{key}_scales": s}

            change_weights(folder, lambda t, key=f"{name}.{projection}", b=blocks, s=scales: quantize(t, key, b, s))
    set_config(folder, quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]})
    assert_equal_logits(folder, plain)


def test_fp8_encoder_is_dequantized(tmp_path: Path) -> None:
    folder, task = bert(tmp_path / "model"), Task.EMBED
    plain = save_fp8(folder, block=16, chosen="encoder")

    @torch.inference_mode()
    def hidden(path: Path) -> torch.Tensor:
        config = settings(path, attention="sdpa", model_impl="single")
        loaded = encoder_loading.load(config, model_folder.check(config), task)
        return loaded.model(TOKENS).last_hidden_state

    torch.testing.assert_close(hidden(folder), hidden(plain), rtol=1e-4, atol=1e-4)


def bert(folder: Path) -> Path:
    sizes = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    transformers.BertModel(transformers.BertConfig(vocab_size=models.VOCAB, **sizes)).save_pretrained(folder)
    return folder


METHODS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "gptq": ({"quant_method": "gptq", "bits": 4}, ["gptq", "optimum", "gptqmodel", "not installed", "--quantize"]),
    "awq": ({"quant_method": "awq", "bits": 4}, ["awq", "gptqmodel", "not installed", "--quantize"]),
    "bitsandbytes": ({"load_in_4bit": True}, ["bitsandbytes", "not installed"]),
    "compressed-tensors": ({"quant_method": "compressed-tensors"}, ["compressed-tensors", "not installed"]),
    "modelopt": ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, ["modelopt", "does not read"]),
    "exl2": ({"quant_method": "exl2"}, ["exl2", "does not read"]),
    "exl3": ({"quant_method": "exl3"}, ["exl3", "does not read"]),
    "nvfp4": ({"quant_method": "nvfp4"}, ["nvfp4", "does not read"]),
    "a new one": ({"quant_method": "fp3"}, ["fp3", "does not read"]),
    "without a method": ({"group_size": 64}, ["quant_method is missing"]),
    "mlx": ({"group_size": 64, "bits": 4}, ["MLX", "does not read"]),
}


@pytest.mark.parametrize("place", ["quantization_config", "text_config"])
@pytest.mark.parametrize("name", METHODS)
def test_unreadable_methods_are_refused_before_weights_are_read(name: str, place: str, folder: Path) -> None:
    declared, words = METHODS[name]
    set_config(
        folder, **({place: declared} if place == "quantization_config" else {place: {"quantization_config": declared}})
    )
    (folder / "model.safetensors").write_bytes(b"not looked at")
    message = refusal(folder)
    for word in (*words, str(folder / "config.json"), "quantization_config"):
        assert word in message
    assert "download" not in message and "at fault" not in message


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        (
            "hf_quant_config.json",
            {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}},
            "modelopt FP8",
        ),
        ("quantize_config.json", {"bits": 4, "group_size": 128}, "gptq"),
        ("quant_config.json", {"w_bit": 4, "zero_point": True}, "awq"),
        ("quanto_qmap.json", {UP: {"weights": "qint8"}}, "quanto"),
    ],
)
def test_quantizers_own_files_are_recognized(file: str, content: dict[str, Any], words: str, folder: Path) -> None:
    (folder / file).write_text(json.dumps(content))
    message = refusal(folder)
    assert words in message and str(folder / file) in message


def test_plain_weights_are_served(folder: Path) -> None:
    set_config(folder, quantization_config=None)
    cache_only = {"quantization": {"quant_algo": None, "kv_cache_quant_algo": "FP8"}}
    (folder / "hf_quant_config.json").write_text(json.dumps(cache_only))
    change_weights(folder, lambda t: t.update({"model.layers.0.self_attn.k_proj.k_scale": torch.ones(1)}))
    assert load(folder).path.name == "paged"


def test_quantized_weights_cannot_be_split(folder: Path) -> None:
    save_fp8(folder, block=16)
    with pytest.raises(ModelError, match=r"fp8.*config\.json.*2 shards.*--num-shard 1"):
        model_folder.check(settings(folder, world_size=2))


def test_weights_are_not_quantized_twice(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    monkeypatch.setattr(quantized_checkpoint, "_is_installed", lambda _package: True)
    with pytest.raises(ModelError, match=r"gptq.*already.*leave --quantize int4 out"):
        model_folder.check(settings(folder, quantize="int4"))


def test_fp8_without_its_scales_is_refused(folder: Path) -> None:
    save_fp8(folder, block=16)
    change_weights(folder, lambda t: t.pop(f"{UP}.weight_scale_inv"))
    assert f"{UP}.weight in {folder} is F8_E4M3 and has no {UP}.weight_scale_inv" in refusal(folder)


def test_fp8_with_renamed_scales_is_refused(folder: Path) -> None:
    save_fp8(folder, block=16)
    change_weights(folder, lambda t: t.update({f"{UP}.weight_scale": t.pop(f"{UP}.weight_scale_inv")}))
    assert f"{UP}.weight in {folder} is F8_E4M3" in refusal(folder)


def test_weights_that_the_declared_method_does_not_explain_are_refused(folder: Path) -> None:
    plain = save_fp8(folder, block=16)
    change_weights(folder, lambda t: t.update({f"{UP}.weight": t[f"{UP}.weight"].to(torch.int32)}))
    assert f"{UP}.weight in {folder} is stored as I32" in refusal(folder)
    set_config(plain, quantization_config={"quant_method": "mxfp4"})
    change_weights(plain, UNDECLARED["8-bit floats"])
    assert "F8_E4M3" in refusal(plain)


def test_fp8_with_a_partial_last_block_is_refused(folder: Path) -> None:
    save_fp8(folder, block=64)
    message = refusal(folder)
    assert "whole blocks of [64, 64]" in message and "fp8" in message


UNDECLARED: dict[str, Any] = {
    "8-bit floats": lambda t: t.update({f"{UP}.weight": t[f"{UP}.weight"].to(torch.float8_e4m3fn)}),
    "other 8-bit floats": lambda t: t.update({f"{UP}.weight": t[f"{UP}.weight"].to(torch.float8_e5m2)}),
    "bytes": lambda t: t.update({f"{UP}.weight": t[f"{UP}.weight"].to(torch.int8)}),
    "integers": lambda t: t.update({"model.norm.weight": t["model.norm.weight"].to(torch.int32)}),
    "a scale": lambda t: t.update({f"{UP}.weight_scale": torch.ones(1)}),
    "an inverse scale": lambda t: t.update({f"{UP}.weight_scale_inv": torch.ones(5, 3)}),
    "a second scale": lambda t: t.update({f"{UP}.weight_scale_2": torch.ones(1)}),
    "a scale of DeepSeek's": lambda t: t.update({f"{UP}.scale": torch.ones(5, 3)}),
    "a scale of inputs": lambda t: t.update({f"{UP}.input_scale": torch.ones(1)}),
    "a zero point": lambda t: t.update({f"{UP}.weight_zero_point": torch.zeros(1)}),
    "zeros": lambda t: t.update({f"{UP}.qzeros": torch.zeros(1, dtype=torch.int32)}),
    "codes in the place of weights": lambda t: t.update({f"{UP}.qweight": t.pop(f"{UP}.weight").to(torch.int32)}),
    "packed weights": lambda t: t.update({f"{UP}.weight_packed": t.pop(f"{UP}.weight").to(torch.int32)}),
    "an order of groups": lambda t: t.update({f"{UP}.g_idx": torch.zeros(1, dtype=torch.int32)}),
    "blocks": lambda t: t.update({"model.layers.1.mlp.experts.gate_up_proj_blocks": torch.zeros(1, dtype=torch.uint8)}),
    "scales": lambda t: t.update({"model.layers.1.mlp.experts.gate_up_proj_scales": torch.zeros(1, dtype=torch.uint8)}),
    "bitsandbytes": lambda t: t.update({f"{UP}.weight.absmax": torch.ones(1)}),
    "bitsandbytes' state": lambda t: t.update({f"{UP}.weight.quant_state.bitsandbytes__nf4": torch.ones(1)}),
    "bitsandbytes in 8 bits": lambda t: t.update({f"{UP}.SCB": torch.ones(1)}),
    "a codebook": lambda t: t.update({f"{UP}.codebooks": torch.ones(1)}),
    "quanto": lambda t: t.update({f"{UP}.weight._scale": torch.ones(1)}),
    "exl3": lambda t: t.update({f"{UP}.trellis": t.pop(f"{UP}.weight").to(torch.int16)}),
}


@pytest.mark.parametrize("change", UNDECLARED.values(), ids=UNDECLARED)
def test_undeclared_quantized_tensors_are_refused(change: Any, folder: Path) -> None:
    change_weights(folder, change)
    message = refusal(folder)
    assert "quantized" in message and str(folder) in message and "nothing in config.json" in message


@pytest.mark.parametrize("change", ["8-bit floats", "bytes", "a scale", "a second scale"])
def test_undeclared_quantized_tensors_of_an_encoder_are_refused(change: str, tmp_path: Path) -> None:
    folder = bert(tmp_path / "model")

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        mine = "encoder.layer.1.output.dense"
        tensors[f"{UP}.weight"] = tensors[f"{mine}.weight"]
        UNDECLARED[change](tensors)
        for name in [name for name in tensors if name.startswith(UP)]:
            tensors[name.replace(UP, mine)] = tensors.pop(name)

    change_weights(folder, rename)
    config = settings(folder)
    with pytest.raises(ModelError, match=r"quantized"):
        encoder_loading.load(config, model_folder.check(config), Task.EMBED)


def test_tensors_of_ordinary_models_are_not_taken_for_quantized(folder: Path) -> None:
    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors |= {
            "logit_scale": torch.ones(()),
            "vision_tower.layers.0.layer_scale1.scale": torch.ones(4),
            "vision_tower.layers.0.mlp.fc1.weight_scale_inv": torch.ones(4),
            "vision_tower.blocks.0.norm.zeros": torch.ones(4),
            "model.layers.0.self_attn.k_scale": torch.ones(1),
            "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8),
            "model.layers.0.self_attn.bias": torch.ones(4, dtype=torch.uint8),
            "model.layers.3.mlp.up_proj.weight": torch.ones(4, 4),
            "model.layers.3.mlp.up_proj.weight_scale_inv": torch.ones(1, 1),
            "position_ids": torch.arange(4),
        }

    change_weights(folder, add)
    assert load(folder).path.name == "paged"


def test_a_models_own_scales_are_not_taken_for_quantized(tmp_path: Path) -> None:
    # Bloom has layer scales, and buffers of integers.
    model = transformers.BloomForCausalLM(
        transformers.BloomConfig(vocab_size=models.VOCAB, hidden_size=32, n_layer=2, n_head=2)
    )
    model.save_pretrained(tmp_path)
    assert load(tmp_path).vocab_size == models.VOCAB


def test_a_broken_file_beside_quantized_weights_is_named(folder: Path) -> None:
    save_fp8(folder, block=16)
    save_file({}, folder / "model.safetensors", {"format": "pt"})
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:5])
    message = refusal(folder)
    assert "damaged" in message and "model.safetensors" in message
