"""A model that cannot be served ends the launcher within seconds, with a non-zero code and one message that says what
to do."""

import json
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.models import cache_bytes_per_token
from support.server import Server

TinyModels = Callable[[str], Path]

#: Includes the start of Python and the import of PyTorch on a busy two-core machine.
WITHIN_S = 30.0


def run_to_failure(
    *flags: str | Path, within_s: float = WITHIN_S, env: dict[str, str] | None = None, port: int | None = None
) -> str:
    """Starts the launcher, which must fail in time and leave no process; returns its last error message."""
    server = Server(*flags, env=env, port=port)
    server.start()
    try:
        code = server.wait_exit(timeout_s=within_s)
        took_s = time.monotonic() - server.started_at
        assert code not in (0, None), server.log_tail()
        assert code > 0, f"killed by a signal: {code}"
        assert took_s < within_s
        server.assert_nothing_survives()
    finally:
        server.kill()
    log = server.log()
    assert "panicked" not in log, server.log_tail()
    assert "Traceback" not in log, server.log_tail()
    closing = [line for line in server.lines if line.strip()][-1]
    assert server.log().count(closing) == 1, f"said more than once:\n{server.log_tail()}"
    return closing


def copied(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


def test_a_missing_folder(tmp_path: Path) -> None:
    message = run_to_failure("--model-id", tmp_path / "nowhere")
    assert "nowhere" in message


def test_a_hub_name_while_offline_and_not_cached(tmp_path: Path) -> None:
    message = run_to_failure(
        "--model-id", "nobody/has-this-model", env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    )
    assert "nobody/has-this-model" in message
    assert "offline" in message.lower() or "HF_HUB_OFFLINE" in message


@pytest.mark.parametrize(
    ("file", "named"),
    [("config.json", "config.json"), ("tokenizer.json", "tokenizer"), ("model.safetensors", "safetensors")],
)
def test_a_folder_without_a_file_is_refused(file: str, named: str, tiny: TinyModels, tmp_path: Path) -> None:
    folder = copied(tiny("llama"), tmp_path / "model")
    (folder / file).unlink()
    assert named in run_to_failure("--model-id", folder)


def test_a_config_that_is_not_json(tiny: TinyModels, tmp_path: Path) -> None:
    folder = copied(tiny("llama"), tmp_path / "model")
    (folder / "config.json").write_text("{")
    assert "config.json" in run_to_failure("--model-id", folder)


def test_a_config_of_an_unknown_type(tiny: TinyModels, tmp_path: Path) -> None:
    folder = copied(tiny("llama"), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "from_the_future"}))
    assert "from_the_future" in run_to_failure("--model-id", folder)


def test_a_truncated_safetensors_file(tiny: TinyModels, tmp_path: Path) -> None:
    folder = copied(tiny("llama"), tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    message = run_to_failure("--model-id", folder)
    assert "model.safetensors" in message


def test_weights_without_a_tensor(tiny: TinyModels, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = copied(tiny("llama"), tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if "down_proj" in name)
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert name in run_to_failure("--model-id", folder)


@pytest.mark.parametrize(("method", "shards"), [("exl3", 1), ("gptq", 1), ("fp8", 2)])
def test_weights_in_an_unsupported_quantization(method: str, shards: int, tiny: TinyModels, tmp_path: Path) -> None:
    folder = copied(tiny("llama"), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    message = run_to_failure("--model-id", folder, "--num-shard", str(shards))
    for word in (f"quantized with {method}", "config.json", "unquantized model"):
        assert word in message


def test_custom_code_without_trust(trap: Path) -> None:
    message = run_to_failure("--model-id", trap, "--dtype", "float32")
    assert "--trust-remote-code" in message


def change_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def test_impossible_sizes(tiny: TinyModels, tmp_path: Path) -> None:
    folder = copied(tiny("llama"), tmp_path / "model")
    change_config(folder, num_attention_heads=0)
    message = run_to_failure("--model-id", folder)
    assert "config.json has num_attention_heads: 0" in message


def test_config_and_weights_of_different_models(tiny: TinyModels, tmp_path: Path) -> None:
    folder = copied(tiny("llama"), tmp_path / "model")
    change_config(folder, intermediate_size=96)
    message = run_to_failure("--model-id", folder)
    assert "disagree in shape" in message
    assert "mlp" in message


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (None, ["auto_map.AutoConfig", "trap.py is missing"]),
        ("raise OSError('no luck')", ["auto_map.AutoConfig", "trap.py", "no luck"]),
        ("import no_such_package_anywhere", ["no_such_package_anywhere"]),
    ],
)
def test_custom_code_that_fails(code: str | None, words: list[str], trap: Path, tmp_path: Path) -> None:
    folder = copied(trap, tmp_path / "model")
    if code is None:
        (folder / "trap.py").unlink()
    else:
        (folder / "trap.py").write_text(code)
    message = run_to_failure("--model-id", folder, "--trust-remote-code")
    for word in words:
        assert word in message


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model": {}}'])
def test_a_damaged_tokenizer_json(content: str, tiny: TinyModels, tmp_path: Path) -> None:
    folder = copied(tiny("llama"), tmp_path / "model")
    (folder / "tokenizer.json").write_text(content)
    message = run_to_failure("--model-id", folder)
    assert "tokenizer.json" in message
    assert "download it again" in message


def test_a_damaged_tokenizer_of_another_kind(tiny: TinyModels, tmp_path: Path) -> None:
    folder = copied(tiny("llama"), tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"\x00\x01\x02")
    message = run_to_failure("--model-id", folder, "--huggingface-hub-cache", tmp_path / "cache")
    assert "tokenizer.model" in message


def test_an_adapter_without_its_base(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    config = {"peft_type": "LORA", "base_model_name_or_path": "/no/such/base"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "adapter_model.safetensors").write_bytes(b"")
    message = run_to_failure("--model-id", folder, "--huggingface-hub-cache", tmp_path / "cache")
    assert "adapter_config.json, base_model_name_or_path" in message
    assert "/no/such/base" in message


def test_pickled_weights_without_the_flag(tiny: TinyModels, tmp_path: Path) -> None:
    folder = copied(tiny("llama"), tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    message = run_to_failure("--model-id", folder, within_s=3)
    for word in ("pytorch_model.bin", "--allow-pickle-weights", "save_pretrained"):
        assert word in message


def test_a_model_without_a_tensor_parallel_plan_over_two_shards(tiny: TinyModels) -> None:
    message = run_to_failure("--model-id", tiny("gpt2"), "--num-shard", "2")
    assert "tensor" in message.lower() or "--num-shard" in message


def test_too_little_memory_for_one_sequence(tiny: TinyModels) -> None:
    folder = tiny("llama")
    message = run_to_failure(
        *("--model-id", folder, "--dtype", "float32", "--max-total-tokens", "1000"),
        *("--kv-cache-memory", str(256 * cache_bytes_per_token(folder))),
    )
    assert "--kv-cache-memory" in message
    assert "--max-total-tokens" in message


def test_more_tokens_than_the_model_has_positions(tiny: TinyModels) -> None:
    message = run_to_failure("--model-id", tiny("llama"), "--max-total-tokens", "100000")
    assert "1024" in message


def test_a_port_in_use(tiny: TinyModels) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        message = run_to_failure("--model-id", tiny("llama"), port=port)
    assert str(port) in message
    assert "in use" in message


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--num-shard", "0"), ["num-shard"]),
        (("--dtype", "float12"), ["dtype", "float32"]),
        (("--device", "abacus"), ["device", "cpu"]),
        (("--model-impl", "magic"), ["model-impl", "paged"]),
        (("--kv-cache-memory", "much"), ["kv-cache-memory"]),
        (("--max-concurrent-requests", "0"), ["max-concurrent-requests"]),
        (("--max-input-tokens", "200", "--max-total-tokens", "100"), ["max-input-tokens", "max-total-tokens"]),
        (("--cuda-memory-fraction", "1.5"), ["cuda-memory-fraction"]),
        (("--no-such-flag",), ["--no-such-flag"]),
    ],
)
def test_a_wrong_flag_is_refused_before_anything_starts(
    tiny: TinyModels, flags: tuple[str, ...], words: list[str]
) -> None:
    server = Server("--model-id", tiny("llama"), *flags)
    server.start()
    try:
        assert server.wait_exit(timeout_s=3) > 0
    finally:
        server.kill()
    for word in words:
        assert word in server.log(), server.log()


def test_cuda_without_a_gpu(tiny: TinyModels) -> None:
    message = run_to_failure("--model-id", tiny("llama"), "--device", "cuda", env={"CUDA_VISIBLE_DEVICES": ""})
    assert "cuda" in message.lower()
