"""Models with their own code: their plain references agree with their own caches."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import custom_models

PROMPTS = [[5, 17, 200, 31, 8, 444, 3, 90], [77, 6, 300], [12, 13, 14, 15, 600]]
COUNT = 12


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """Returns a habit's model as Transformers loads it."""
    root: Path = tmp_path_factory.mktemp("custom")
    return functools.cache(lambda habit: custom_models.plain(custom_models.build(habit, root / habit)))


@pytest.mark.parametrize("habit", custom_models.HABITS)
def test_answers_depend_on_the_prompt(habit: str, model: Callable[[str], Any]) -> None:
    answers = {tuple(custom_models.greedy(model(habit), prompt, COUNT)) for prompt in PROMPTS}
    assert len(answers) == len(PROMPTS)
    assert max(len(set(answer)) for answer in answers) > 4


@pytest.mark.parametrize("habit", [name for name, habit in custom_models.HABITS.items() if habit.generates])
def test_generate_agrees_with_the_reference(habit: str, model: Callable[[str], Any]) -> None:
    for prompt in PROMPTS:
        expected = custom_models.greedy(model(habit), prompt, COUNT)
        assert custom_models.generated(model(habit), prompt, COUNT) == expected


@pytest.mark.parametrize("habit", ["tuple_cache", "alibi_transposed", "seq_first", "absolute_positions"])
@torch.inference_mode()
def test_a_cache_of_tuples_agrees_with_the_reference(habit: str, model: Callable[[str], Any]) -> None:
    for prompt in PROMPTS:
        tokens, past, new = list(prompt), None, list(prompt)
        for _ in range(COUNT):
            options: dict[str, Any] = {}
            if habit == "seq_first":
                options["position_ids"] = torch.arange(len(tokens) - len(new), len(tokens))[None]
            output = model(habit)(torch.tensor([new]), past_key_values=past, use_cache=True, **options)
            past = output.past_key_values
            new = [int(output.logits[0, -1].argmax())]
            tokens += new
        assert tokens[len(prompt) :] == custom_models.greedy(model(habit), prompt, COUNT)
