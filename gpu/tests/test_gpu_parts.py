"""The comparisons of the parts notice errors, and take rounding for what it is."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gpu_check import results, setup
from gpu_check.part import attention, context, graphs, sampling, tokens, variants
from gpu_check.part.context import Context
from gpu_check.results import Result
from gridwork_kernels.attention_choice import IMPLEMENTATIONS
from gridwork_kernels.slot_attention import SlotAttention
from gridwork_server.sampling import Sampler
from gridwork_server.sampling.sampled import SampleOutput

from conformance.generation import CAUSAL, build, reference_tokens

Make = Callable[[], Context]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes the context of a tiny run on the CPU."""
    return lambda: Context(tmp_path, "0-test", "cpu", True, time.monotonic() + 60, Result(0, "test", ""))


def test_a_window_that_is_one_too_long_is_noticed(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    right = IMPLEMENTATIONS["sdpa"]
    assert isinstance(right, SlotAttention)
    wrong = SlotAttention(lambda *given: right.function(*given[:4], replace(given[4], window=given[4].window + 1)))
    cases = [case for case in attention._tiny_cases() if case.options.window]
    for name, implementation, expected in (("right", right, []), ("wrong", wrong, ["wrong: windows"])):
        monkeypatch.setitem(IMPLEMENTATIONS, name, implementation)
        found = make()
        attention._compare(found, f"{name}: windows", name, cases)
        assert [check.name for check in found.result.failed] == expected
        assert results.read(results.path_of(found.folder, found.label)) == found.result


def test_an_attention_that_raises_is_a_failed_check(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(IMPLEMENTATIONS, "broken", SlotAttention(lambda *given: torch.ones(2) @ torch.ones(3)))
    found = make()
    attention._compare(found, "broken", "broken", list(attention._tiny_cases()))
    (check,) = found.result.failed
    assert "RuntimeError" in check.problem and "(and 1 more)" in check.problem


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_plain_operations_hold_for_all_small_cases_of_a_gpu(dtype: torch.dtype) -> None:
    right = IMPLEMENTATIONS["sdpa"]
    assert isinstance(right, SlotAttention)
    small = [case for case in attention._cases_of(dtype, 16) if max(end for _, end in case.chunks) < 100]
    assert len(small) > 50
    for case in small:
        attention._difference(right.function, case, torch.device("cpu"))


class Shifted(Sampler):
    """A sampler of the device (not of the CPU beside it) that gives one row another token."""

    def __init__(self, max_sequences: int, vocab_size: int, device: torch.device | str) -> None:
        super().__init__(max_sequences, vocab_size, device)
        self._is_wrong = isinstance(device, torch.device)

    def sample(self, logits: torch.Tensor, sequence_ids: np.ndarray, positions: np.ndarray) -> SampleOutput:
        out = super().sample(logits, sequence_ids, positions)
        if self._is_wrong:
            out.token_ids[4] = (out.token_ids[4] + 1) % 100
        return out


def test_a_token_that_differs_from_the_cpus_is_noticed(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    case = sampling.Case(vocab_size=100, coarse=False, rows=9, steps=2)
    found = make()
    sampling._compare(found, "right", case)
    assert not found.result.failed
    monkeypatch.setattr(sampling, "Sampler", Shifted)
    sampling._compare(found, "wrong", case)
    (check,) = found.result.failed
    assert check.problem.startswith("1 of 9 tokens differ; row 4 of step 0")


def test_a_draw_at_the_border_of_two_tokens_is_rounding() -> None:
    params = sampling.mixed(2)[1]
    logits = torch.zeros(50)
    sampler = sampling._sampler(50, [params], [3, 4, 5], "cpu")
    drawn = int(sampler.sample(logits.clone()[None], np.array([0]), np.array([1])).token_ids[0])
    assert sampling._is_rounding(params, [3, 4, 5], logits, 1, drawn)
    assert not sampling._is_rounding(params, [3, 4, 5], logits, 1, (drawn + 7) % 50)
    greedy = sampling.mixed(1)[0]
    assert not sampling._is_rounding(greedy, [3, 4, 5], logits, 1, 0), "a greedy token has no border"


def test_logits_of_another_step_are_noticed() -> None:
    torch.manual_seed(0)
    logits = [torch.randn(3, 20) for _ in range(2)]
    given = {0: [1, 2]}
    noisy = [each + 1e-6 for each in logits]
    graphs._check((noisy, given), (logits, given), "plain steps", "float32")
    with pytest.raises(AssertionError, match="step 1 differs from plain steps"):
        graphs._check(([logits[0], logits[0]], given), (logits, given), "plain steps", "float32")
    with pytest.raises(AssertionError, match="tokens differ"):
        graphs._check((logits, {0: [1, 3]}), (logits, given), "plain steps", "float32")


def test_in_16_bits_only_tokens_that_rounding_allows_pass(tmp_path: Path) -> None:
    model_class = build("llama", tmp_path, CAUSAL)
    right = reference_tokens(tmp_path, model_class)
    assert tokens.lag(tmp_path, model_class, right) == ""
    wrong: list[list[int]] = [list(each) for each in right]
    wrong[1][3] = (wrong[1][3] + 1) % 100
    assert tokens.lag(tmp_path, model_class, wrong).startswith("token 3 after a prompt of")
    assert "tokens differ from token 3 on" in tokens.difference(right, wrong)
    assert tokens.difference(right, right) == ""


def test_a_part_says_what_it_had_no_time_for(make: Make) -> None:
    found = make()
    assert found.has_time("one")
    assert not found.has_time("two", needed_s=100)
    assert (found.was_cut, found.result.left_out) == (True, ["two: there was no time"])


def test_a_part_without_its_device_is_refused(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found: Any = make()
    found.device_name = "cuda"
    with pytest.raises(context.Refused, match="PyTorch sees no GPU"):
        _ = found.device


def report(context: Context, name: str) -> None:
    """A variant that reports one check."""
    context.check(f"{name} was compared")


def test_variants_run_in_processes_and_one_that_ends_badly_fails_alone(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = replace(make(), tiny=False, label="5-conformance")
    found.result.name = "conformance"
    path = setup.prepare(None, found.folder).environment(is_interpreted=False)["PYTHONPATH"]
    monkeypatch.setenv("PYTHONPATH", path)
    variants.run_all(found, ("llama", "no such one"), report, at_once=2)
    (failed,) = found.result.failed
    assert failed.name == "no such one"
    assert failed.problem.startswith("KeyError: 'no such one'; see 5-conformance-no-such-one.log")
    good = [check.name for check in found.result.checks if not check.problem]
    assert good == ["llama in float32", "llama in bfloat16"]


def test_a_dry_run_has_its_variants_in_one_process(make: Make) -> None:
    found = make()
    variants.run_all(found, ("one", "two"), report, at_once=2)
    assert [check.name for check in found.result.checks] == ["one was compared", "two was compared"]


def test_variants_without_time_are_named(make: Make) -> None:
    found = replace(make(), tiny=False, deadline=time.monotonic() + 1)
    variants.run_all(found, ("one",), report, at_once=1)
    assert (found.was_cut, found.result.left_out) == (True, ["one: there was no time"])
