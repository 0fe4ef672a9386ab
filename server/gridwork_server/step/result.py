"""What a step's result says of the tokens that were sampled."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from gridwork_server._proto import shard_pb2 as pb
    from gridwork_server.sampling import SampleOutput


def add_tokens(result: "pb.StepResult", ids: np.ndarray, output: "SampleOutput", good: np.ndarray) -> None:
    """Adds the good ones. ids, good: int64 and bool `[n]`, of what was sampled."""
    result.sequence_ids.extend(ids[good].tolist())
    result.token_ids.extend(output.token_ids.numpy()[good].tolist())
    if output.logprobs is not None:
        result.logprobs.extend(output.logprobs[good].tolist())
    if output.num_top is not None and output.top_ids is not None and output.top_logprobs is not None:
        keep = np.repeat(good, output.num_top)
        result.num_top.extend(output.num_top[good].tolist())
        result.top_token_ids.extend(output.top_ids[keep].tolist())
        result.top_logprobs.extend(output.top_logprobs[keep].tolist())
