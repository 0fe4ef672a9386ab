from pathlib import Path
from typing import Any

import pytest
import torch
from gridwork_server.config import ShardConfig
from tools.profile_step import Decodes, Operation, Prefills, profile, runner_for, table
from transformers import LlamaConfig, LlamaForCausalLM


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48}
    depth: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(**sizes, **depth, max_position_embeddings=2048)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    return tmp_path


def config_of(folder: Path) -> ShardConfig:
    return ShardConfig(folder, socket="", dtype="float32", fuse=False, kv_cache_memory_bytes=2**24)


def test_the_operations_of_real_decodes_are_counted(llama: Path) -> None:
    # Two sequences, each with more than one chunk of prefill.
    runner = runner_for(config_of(llama), 2, 700)
    steps = Decodes(runner, batch=2, context=600, total_tokens=700)
    _ms, operations = profile(steps, 3)
    by_name = {operation.name: operation for operation in operations}
    # Seven linear layers in each of two decoder layers, and the head.
    assert by_name["aten::linear"].calls == 15
    assert runner.table.num_known[:2].tolist() == [604, 604]


def test_the_operations_of_real_prefills_are_counted(llama: Path) -> None:
    runner = runner_for(config_of(llama), 2, 100)
    _ms, operations = profile(Prefills(runner, batch=2, length=90), 3)
    by_name = {operation.name: operation for operation in operations}
    assert by_name["aten::linear"].calls == 15


def test_the_table_accounts_for_the_whole_step() -> None:
    operations = [Operation("aten::mm", 15, 6.0), Operation("aten::add", 4, 1.0), Operation("aten::mul", 4, 1.0)]
    lines = table(8.0, 10.0, operations, rows=1)
    assert lines[4:] == [
        "| aten::mm | 15 | 6.000 | 60.0 % |",
        "| 2 others | 8 | 2.000 | 20.0 % |",
        "| between operations |  | 2.000 | 20.0 % |",
    ]
    assert sum(float(line.split("|")[4].rstrip("% ")) for line in lines[4:]) == pytest.approx(100)
