"""Rotary frequencies that depend on the length of a sequence: each sequence of a batch has its own."""

import copy
from typing import Any

import pytest
import torch

from gridwork_server.encoder.batch import SequenceBatch
from gridwork_server.encoder.selection import select
from gridwork_server.model.task import Task

from . import models

LIMIT = 24
LENGTHS = [5, 60, 20, LIMIT, LIMIT + 1, 100, 3]

ROPES: dict[str, dict[str, Any]] = {
    "longrope": {
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "short_factor": [1.0] * 6,
            "long_factor": [1.0, 2.0, 4.0, 8.0, 16.0, 32.0],
            "factor": 4.0,
            "original_max_position_embeddings": LIMIT,
        }
    },
    "dynamic": {
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 8.0},
        "max_position_embeddings": LIMIT,
    },
}


@pytest.mark.parametrize("wish", ["auto", "padded", "single"])
@pytest.mark.parametrize("kind", ROPES)
def test_each_sequence_of_a_batch_has_the_frequencies_of_its_own_length(kind: str, wish: str) -> None:
    model = models.build("llama", **ROPES[kind])
    fresh = copy.deepcopy(model)
    fresh.set_attn_implementation("eager")
    selection = select(model, Task.EMBED, wish)
    assert selection.path.name == ("flat" if wish == "auto" else wish)
    assert not selection.reason
    sequences = models.sequences(LENGTHS)
    with torch.inference_mode():
        got = selection.path.hidden_states(SequenceBatch.of(sequences))
        alone = [copy.deepcopy(fresh)(input_ids=torch.tensor([ids])).last_hidden_state[0] for ids in sequences]
    torch.testing.assert_close(got, torch.cat(alone), rtol=0, atol=2e-5)
