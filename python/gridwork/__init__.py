"""Gridwork: any Transformers model, in a few lines.

>>> from gridwork import LLM, SamplingParams
>>> llm = LLM(MODEL, dtype="float32")
>>> params = SamplingParams(temperature=0, max_tokens=5)
>>> for output in llm.generate(["The capital of France is"], params, use_tqdm=False):
...     print(output.outputs[0].text)
 Paris.
<BLANKLINE>
The
>>> llm.close()
"""

from gridwork.async_llm import AsyncLLM
from gridwork.errors import EngineDied, GridworkError, InvalidRequest, ModelError, RequestFailed
from gridwork.llm import LLM
from gridwork.outputs import (
    ClassificationOutput,
    ClassificationRequestOutput,
    CompletionOutput,
    EmbeddingOutput,
    EmbeddingRequestOutput,
    Logprob,
    RequestMetrics,
    RequestOutput,
    RerankResult,
    ScoringOutput,
    ScoringRequestOutput,
    TokenVectorsOutput,
    TokenVectorsRequestOutput,
)
from gridwork.prompts import PromptType, TextPrompt, TokensPrompt
from gridwork.sampling import SamplingParams

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "AsyncLLM",
    "ClassificationOutput",
    "ClassificationRequestOutput",
    "CompletionOutput",
    "EmbeddingOutput",
    "EmbeddingRequestOutput",
    "EngineDied",
    "GridworkError",
    "InvalidRequest",
    "Logprob",
    "ModelError",
    "PromptType",
    "RequestFailed",
    "RequestMetrics",
    "RequestOutput",
    "RerankResult",
    "SamplingParams",
    "ScoringOutput",
    "ScoringRequestOutput",
    "TextPrompt",
    "TokenVectorsOutput",
    "TokenVectorsRequestOutput",
    "TokensPrompt",
]
