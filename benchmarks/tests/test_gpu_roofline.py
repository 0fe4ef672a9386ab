import json
from pathlib import Path

import pytest
import torch
from tools import gpu_roofline
from tools.gpu_roofline import TINY, Measured, Shape, main, markdown


def test_the_tiny_form_runs_and_writes_what_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "result.json"
    assert main(["--tiny", "--device", "cpu", "--json", str(file)]) == 0
    printed = capsys.readouterr().out.splitlines()
    result = json.loads(file.read_text())
    assert markdown(result) == printed
    assert [row["what"] for row in result["measured"]] == [
        "decode, 1 × 40 tokens",
        "decode, 1 × 40 tokens",
        "decode, 4 × 40 tokens",
        "prefill of 96 tokens",
    ]
    assert all(row["ms"] > 0 and row["share"] > 0 for row in result["measured"])
    assert set(result["parity"]["sdpa"].values()) == {"agrees"}


def test_bytes_and_flop_of_the_model_are_counted() -> None:
    assert Shape().block_weights + 2 * Shape().head_weights == pytest.approx(8.03e9, rel=1e-3), "Llama 3.1 8B"
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(TINY.config())
    matrices = [p.numel() for name, p in model.named_parameters() if "norm" not in name]
    assert sum(matrices) == TINY.block_weights + 2 * TINY.head_weights
    assert TINY.decode_bytes(3, 10) - TINY.decode_bytes(0, 0) == 30 * TINY.kv_bytes_per_token
    # One token attends to itself alone: two products of the head size for each head.
    attended = TINY.layers * TINY.heads * TINY.head_size * 4
    assert TINY.prefill_flop(1) == 2 * (TINY.block_weights + TINY.head_weights) + attended


def test_a_wrong_implementation_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(shape: Shape, device: torch.device, args: object) -> dict[str, object]:
        return {
            "device": "cpu",
            "torch": "",
            "attention": "sdpa",
            "decode_sizes": [1, 2],
            "parameters": 1,
            "bandwidth_tb_per_s": 1.0,
            "matmul_tflop_per_s": 1.0,
            "parity": {"varlen": {"window": "its results differ from the reference by 0.3"}},
            "measured": [vars(Measured("decode", 1.0, 2.0, "TB/s", 0.5))],
        }

    monkeypatch.setattr(gpu_roofline, "measure", measured)
    assert main(["--tiny", "--device", "cpu"]) == 1


def test_without_a_gpu_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["--device", "cuda"]) == 1
