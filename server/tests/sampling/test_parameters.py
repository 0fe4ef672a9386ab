"""The list of sampling parameters."""

import numpy as np
import pytest

from gridwork_server._proto import shard_pb2 as pb
from gridwork_server.sampling import Sampler, neutral_parameters
from gridwork_server.sampling.parameters import PARAMETERS, Stage, costly_parameters

OTHERS = {"greedy", "logit_bias_tokens", "logit_bias_values", "end_token_ids", "allowed_token_ids"} | {
    *("run_tokens", "run_lengths", "run_biases", "begin_forbidden_token_ids"),
    *("forced_positions", "forced_token_ids"),
}
"""Fields of the contract that are no single numbers."""


def test_the_list_has_every_number_of_the_contract() -> None:
    fields = {field.name for field in pb.SamplingParameters.DESCRIPTOR.fields}
    assert {each.field for each in PARAMETERS} == fields - OTHERS
    assert len(PARAMETERS) == len(fields - OTHERS)


def stages(params: pb.SamplingParameters) -> Stage:
    sampler = Sampler(1, 100, "cpu")
    sampler.admit(0, np.zeros(1, dtype=np.int32), 1, params)
    return Stage(int(sampler._stages[0]))


def test_neutral_values_need_no_stage() -> None:
    assert stages(neutral_parameters(greedy=True)) == Stage(0)
    assert stages(neutral_parameters()) == Stage.DRAW


@pytest.mark.parametrize("each", PARAMETERS, ids=lambda each: each.field)
def test_another_value_needs_the_stage_of_its_parameter(each: object) -> None:
    assert stages(neutral_parameters(**{each.field: 0.5 if each.dtype is np.float32 else 7})) == Stage.DRAW | each.stage


def test_costly_values_need_every_stage_that_takes_memory() -> None:
    changes = Stage.BIAS | Stage.PENALTY | Stage.END | Stage.ALLOWED
    assert stages(costly_parameters()) == changes | Stage.DRAW | Stage.TRUNCATION


def test_sequences_with_penalties_take_no_drafts() -> None:
    sampler = Sampler(2, 100, "cpu")
    sampler.admit(0, np.zeros(1, dtype=np.int32), 1, neutral_parameters(seed=3))
    sampler.admit(1, np.zeros(1, dtype=np.int32), 1, neutral_parameters(presence_penalty=0.5))
    sampler.check_drafts(np.array([0]))
    with pytest.raises(ValueError, match="sequence 1 has drafts and penalties"):
        sampler.check_drafts(np.array([0, 1]))
