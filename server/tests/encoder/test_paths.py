"""Paths give the results of plain forward() for each sequence, and a path that does not is not selected."""

from typing import Any

import pytest
import torch
import transformers

from gridwork_server.encoder import attention
from gridwork_server.encoder.batch import SequenceBatch
from gridwork_server.encoder.selection import select
from gridwork_server.errors import ModelError
from gridwork_server.model.task import Task

from . import models

LENGTHS = [17, 3, 40, 17, 1, 29]

FLAT = ["bert", "roberta", "xlm-roberta", "electra", "modernbert", "distilbert", "llama", "gemma3"]
PADDED = ["mpnet", "deberta-v2"]


@torch.inference_mode()
def plainly(model: Any, sequences: list[list[int]]) -> list[Any]:
    """Outputs of the model's own forward() for one sequence after the other."""
    model.set_attn_implementation("eager")
    return [
        model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.int64))
        for ids in sequences
    ]


def difference(got: torch.Tensor, expected: torch.Tensor) -> float:
    assert got.shape == expected.shape
    return float((got - expected).abs().max())


@pytest.mark.parametrize("name", FLAT + PADDED + ["fnet"])
def test_hidden_states_are_those_of_plain_forward(name: str) -> None:
    model = models.build(name)
    selection = select(model, Task.EMBED)
    assert selection.path.name == ("flat" if name in FLAT else "padded" if name in PADDED else "single")
    assert bool(selection.reason) == (name not in FLAT)
    sequences = models.sequences(LENGTHS)
    with torch.inference_mode():
        got = selection.path.hidden_states(SequenceBatch.of(sequences))
    expected = torch.cat([out.last_hidden_state[0] for out in plainly(model, sequences)])
    assert difference(got, expected) < 1e-5


@pytest.mark.parametrize("name", [*FLAT[:6], *PADDED])
def test_token_logits_are_those_of_plain_forward(name: str) -> None:
    model = models.build(name, transformers.AutoModelForMaskedLM)
    path = select(model, Task.FILL_MASK).path
    sequences = models.sequences(LENGTHS)
    positions = torch.tensor([0, 16, 19, 50, 77])
    with torch.inference_mode():
        got = path.token_logits(SequenceBatch.of(sequences), positions)
    expected = torch.cat([out.logits[0] for out in plainly(model, sequences)])[positions]
    assert difference(got, expected) < 2e-5


@pytest.mark.parametrize("name", [*FLAT[:7], *PADDED])
def test_label_logits_are_those_of_plain_forward(name: str) -> None:
    model = models.build(name, transformers.AutoModelForSequenceClassification, num_labels=3)
    path = select(model, Task.CLASSIFY).path
    assert path.name == ("flat" if name in FLAT else "padded")
    sequences = models.sequences(LENGTHS)
    with torch.inference_mode():
        got = path.label_logits(SequenceBatch.of(sequences))
    expected = torch.cat([out.logits for out in plainly(model, sequences)])
    assert difference(got, expected) < 2e-5


def test_token_types_reach_the_model() -> None:
    model = models.build("bert", transformers.AutoModelForSequenceClassification, num_labels=1)
    path = select(model, Task.RERANK).path
    sequences = models.sequences([9, 5])
    types = [[0] * 4 + [1] * 5, [0, 0, 1, 1, 1]]
    batch = SequenceBatch.of(sequences)
    batch = SequenceBatch(batch.token_ids, torch.tensor(types[0] + types[1]), batch.lengths)
    with torch.inference_mode():
        got = path.label_logits(batch)
        without = path.label_logits(SequenceBatch.of(sequences))
        model.set_attn_implementation("eager")
        expected = torch.cat(
            [
                model(input_ids=torch.tensor([ids]), token_type_ids=torch.tensor([kinds])).logits
                for ids, kinds in zip(sequences, types, strict=True)
            ]
        )
    assert difference(got, expected) < 1e-5
    assert difference(got, without) > 1e-3


@pytest.mark.parametrize(("name", "offset"), [("bert", 0), ("roberta", 2), ("llama", 0), ("mpnet", 2)])
def test_positions_are_found_by_watching_the_model(name: str, offset: int) -> None:
    positions = select(models.build(name), Task.EMBED).positions
    assert positions.offset == offset
    assert positions.capacity == (None if name == "llama" else 130 - offset)


@pytest.mark.parametrize(("name", "is_causal"), [("bert", False), ("llama", True), ("gemma3", False)])
def test_causal_models_are_recognized(name: str, is_causal: bool) -> None:
    assert select(models.build(name), Task.EMBED).is_causal == is_causal


def test_a_path_with_other_results_is_not_selected(monkeypatch: pytest.MonkeyPatch) -> None:
    # Layers ignore their windows, which only sequences longer than a window show.
    monkeypatch.setattr(attention, "visible", lambda *_: None)
    selection = select(models.build("modernbert"), Task.EMBED)
    assert selection.path.name == "padded"
    assert "differ" in selection.reason


def test_the_definition_of_attention_agrees_with_the_fused_form() -> None:
    sequences = SequenceBatch.of(models.sequences(LENGTHS))
    for name in ("modernbert", "llama", "gemma3"):
        model = models.build(name)
        with torch.inference_mode():
            reference = select(model, Task.EMBED, attention_wish="reference").path.hidden_states(sequences)
            fused = select(model, Task.EMBED).path.hidden_states(sequences)
        assert difference(fused, reference) < 1e-5


@pytest.mark.parametrize("wish", ["flat", "padded", "single"])
def test_a_named_path_is_selected(wish: str) -> None:
    assert select(models.build("bert"), Task.EMBED, wish).path.name == wish


def test_a_named_path_that_cannot_be_used_is_refused_with_the_reason() -> None:
    with pytest.raises(ModelError, match="attention interface"):
        select(models.build("mpnet"), Task.EMBED, "flat")
