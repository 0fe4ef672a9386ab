"""The host never waits for a GPU while it samples: checked with PyTorch's fake tensors, which have no values."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from gridwork_server.sampling import Sampler, sampled, sampler, sparse_rows, text_rules, watermark

from .naive import Parameters

VOCAB = 4999

SETTINGS = {
    "greedy": Parameters(greedy=True),
    "random": Parameters(temperature=0.8),
    "min_p": Parameters(min_p=0.05),
    "top_k": Parameters(top_k=50),
    "top_p": Parameters(top_p=0.9),
    "typical": Parameters(typical_p=0.9, top_p=0.8),
    "penalties": Parameters(greedy=True, repetition_penalty=1.3, frequency_penalty=0.4, presence_penalty=0.2),
    "bias": Parameters(greedy=True, logit_bias_tokens=[5, 9], logit_bias_values=[4.0, -3.0]),
    "shortest_length": Parameters(greedy=True, first_end_position=4, end_token_ids=[2, 7]),
    "begin": Parameters(greedy=True, begin_forbidden_token_ids=[2, 7]),
    "forced": Parameters(greedy=True, forced_positions=[3, 3, 4], forced_token_ids=[2, 7, 5]),
    "rules": Parameters(run_tokens=[4, 5, 6], run_lengths=[2, 1], run_biases=[-np.inf, 1.0], no_repeat_ngram_size=2),
    "watermark": Parameters(watermark_share=0.5, watermark_bias=2.0, watermark_key=7),
    "everything": Parameters(temperature=1.3, top_k=200, typical_p=0.95, top_p=0.9, min_p=0.01, repetition_penalty=1.1),
}


class NoCopies(TorchDispatchMode):
    """Raises AssertionError for copies between devices, except for those of `to_device`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        devices = {each.device.type for each in (*args, result) if isinstance(each, torch.Tensor) and each.dim()}
        assert len(devices) < 2, f"{func} goes from one device to the other"
        return result


def copied(values: np.ndarray | torch.Tensor, device: torch.device) -> torch.Tensor:
    """Stands in for `to_device`, as if the values had been copied."""
    tensor = torch.from_numpy(values) if isinstance(values, np.ndarray) else values
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=device)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for module in (sampled, sampler, sparse_rows, text_rules, watermark):
        monkeypatch.setattr(module, "to_device", copied)
    with FakeTensorMode(allow_non_fake_inputs=True), NoCopies():
        yield


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("names", [*([name] for name in SETTINGS), list(SETTINGS)], ids="-".join)
@pytest.mark.parametrize("top_n", [None, 0, 3], ids=["", "logprobs", "top_logprobs"])
def test_no_value_is_read_and_no_tensor_copied(names: list[str], top_n: int | None) -> None:
    batch = Sampler(len(names), VOCAB, "cuda")
    for id, name in enumerate(names):
        prompt = np.array([3, 4, 5], dtype=np.int32)
        batch.admit(id, prompt, 3, SETTINGS[name], logprobs=top_n is not None, top_n=top_n or 0)
    ids = np.arange(len(names))
    for step in range(2):
        logits = torch.empty(len(names), VOCAB, device="cuda")
        text = np.array([[3, 4, 5, 4, 5]] * len(names), dtype=np.int32)
        found = batch.begin(logits, ids, np.full(len(names), 3 + step), text=text)
        assert found.token_ids.is_cuda and found.token_ids.shape == (len(names),)


@pytest.mark.usefixtures("gpu")
def test_the_check_notices_operations_that_wait() -> None:
    values = torch.empty(4, device="cuda")
    with pytest.raises(Exception, match="_local_scalar_dense"):
        bool(values.any())
    with pytest.raises(Exception, match="nonzero"):
        values[values > 0]
    with pytest.raises(AssertionError, match="from one device to the other"):
        values.cpu()
