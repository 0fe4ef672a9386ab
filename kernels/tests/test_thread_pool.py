"""The threads of the CPU kernels: every element is computed once, by any thread."""

import threading
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from gridwork_kernels import cpu_library, packed_linear

pytestmark = pytest.mark.skipif(cpu_library.load() is None, reason="no compiled kernels for this CPU")


def expected_and_call(seed: int, features: int = 1000) -> tuple[torch.Tensor, nn.Module, torch.Tensor]:
    torch.manual_seed(seed)
    linear = nn.Linear(96, features).bfloat16()
    x = torch.randn(3, 96).bfloat16()
    return packed_linear.reference(x, linear.weight, linear.bias), packed_linear.PackedLinear(linear), x


@pytest.fixture(params=[1, 2, 5])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    cpu_library.set_num_threads(request.param)
    yield
    cpu_library.set_num_threads(1)


@torch.inference_mode()
@pytest.mark.usefixtures("threads")
def test_many_short_loops_are_all_computed() -> None:
    expected, layer, x = expected_and_call(0)
    first = layer(x)
    torch.testing.assert_close(first, expected)
    for _ in range(3000):
        assert torch.equal(layer(x), first)


@torch.inference_mode()
@pytest.mark.usefixtures("threads")
def test_loops_with_more_chunks_than_the_previous_one_end() -> None:
    """A thread that wakes late for a loop must not claim a chunk of the next loop for it."""
    layers = [expected_and_call(seed, features)[1:] for seed, features in enumerate((300, 5000, 700))]
    first = [layer(x) for layer, x in layers]
    for _ in range(20000):
        for (layer, x), expected in zip(layers, first, strict=True):
            assert torch.equal(layer(x), expected)


@pytest.mark.usefixtures("threads")
def test_two_concurrent_callers() -> None:
    failures: list[BaseException] = []

    @torch.inference_mode()
    def call(seed: int) -> None:
        try:
            _expected, layer, x = expected_and_call(seed)
            first = layer(x)
            for _ in range(500):
                assert torch.equal(layer(x), first)
        except BaseException as error:
            failures.append(error)

    callers = [threading.Thread(target=call, args=(seed,)) for seed in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not failures
