"""What cannot be served ends the launcher within seconds, non-zero, with one clear message that says what to do."""

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

#: Starting Python and importing PyTorch on a busy two-core machine included.
WITHIN_S = 30.0


def run_to_failure(
    *flags: str | Path, within_s: float = WITHIN_S, env: dict[str, str] | None = None, port: int | None = None
) -> str:
    """Starts the launcher, which must end non-zero in time and leave no process; returns its last error message."""
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


def test_no_such_folder(tmp_path: Path) -> None:
    message = run_to_failure("--model-id", tmp_path / "nowhere")
    assert "nowhere" in message


def test_a_hub_name_while_offline_and_not_cached(tmp_path: Path) -> None:
    message = run_to_failure(
        "--model-id", "nobody/has-this-model", env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    )
    assert "nobody/has-this-model" in message
    assert "offline" in message.lower() or "HF_HUB_OFFLINE" in message


def test_a_folder_without_config(tiny: TinyModels, tmp_path: Path) -> None:
    folder = copied(tiny("llama"), tmp_path / "model")
    (folder / "config.json").unlink()
    assert "config.json" in run_to_failure("--model-id", folder)


def test_a_config_that_is_not_json(tiny: TinyModels, tmp_path: Path) -> None:
    folder = copied(tiny("llama"), tmp_path / "model")
    (folder / "config.json").write_text("{")
    assert "config.json" in run_to_failure("--model-id", folder)


def test_a_config_of_an_unknown_type(tiny: TinyModels, tmp_path: Path) -> None:
    folder = copied(tiny("llama"), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "from_the_future"}))
    assert "from_the_future" in run_to_failure("--model-id", folder)


def test_a_folder_without_tokenizer(tiny: TinyModels, tmp_path: Path) -> None:
    folder = copied(tiny("llama"), tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    assert "tokenizer" in run_to_failure("--model-id", folder)


def test_a_folder_without_weights(tiny: TinyModels, tmp_path: Path) -> None:
    folder = copied(tiny("llama"), tmp_path / "model")
    (folder / "model.safetensors").unlink()
    assert "safetensors" in run_to_failure("--model-id", folder)


def test_a_truncated_safetensors_file(tiny: TinyModels, tmp_path: Path) -> None:
    folder = copied(tiny("llama"), tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    message = run_to_failure("--model-id", folder)
    assert "model.safetensors" in message


def test_weights_that_lack_a_tensor(tiny: TinyModels, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = copied(tiny("llama"), tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if "down_proj" in name)
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert name in run_to_failure("--model-id", folder)


def test_custom_code_without_trust(trap: Path) -> None:
    message = run_to_failure("--model-id", trap, "--dtype", "float32")
    assert "--trust-remote-code" in message


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


def test_cuda_where_there_is_none(tiny: TinyModels) -> None:
    message = run_to_failure("--model-id", tiny("llama"), "--device", "cuda", env={"CUDA_VISIBLE_DEVICES": ""})
    assert "cuda" in message.lower()
