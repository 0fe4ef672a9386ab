"""Results, under the names that users of vLLM know."""

from dataclasses import dataclass, field
from typing import Any

from gridwork.errors import GridworkError


@dataclass(frozen=True)
class Logprob:
    """Log-probability of a token, in the model's own distribution."""

    logprob: float
    rank: int | None
    """Place among the most likely tokens, from 1. None for a token that is not among those that were asked for."""
    decoded_token: str


LogprobsOfPosition = dict[int, Logprob]
"""Log-probabilities at one position, by token id: of the token that stands there, and of the likeliest ones."""


@dataclass
class RequestMetrics:
    """Times of a request. Moments are seconds since 1970, durations are seconds."""

    arrival_time: float
    finished_time: float | None = None
    first_token_time: float | None = None
    """In streams only."""
    time_in_queue: float | None = None
    """Not in streams."""
    inference_time: float | None = None
    """Not in streams."""


@dataclass
class CompletionOutput:
    """An answer to a prompt.

    >>> from gridwork import CompletionOutput
    >>> CompletionOutput(index=0, text=" Paris.", finish_reason="stop").finished()
    True
    """

    index: int
    text: str
    token_ids: list[int] = field(default_factory=list)
    """Ids of the generated tokens, with the one that ended the text."""
    logprobs: list[LogprobsOfPosition] | None = None
    cumulative_logprob: float | None = None
    """Sum of the tokens' log-probabilities, where those were asked for."""
    finish_reason: str | None = None
    """`stop`, `length` or `tool_calls`; None while the text grows."""
    stop_reason: str | int | None = None
    """Stop sequence or stop token of the request that ended the text."""
    message: dict[str, Any] | None = None
    """Answer to a chat in OpenAI's form, with `tool_calls` and `reasoning_content` where there are some."""
    delta: str = ""
    """In streams: the text that this piece adds."""

    def finished(self) -> bool:
        """True once the text is complete."""
        return self.finish_reason is not None


@dataclass
class RequestOutput:
    """The answers to one prompt.

    >>> from gridwork import CompletionOutput, RequestOutput
    >>> output = RequestOutput("0", "The capital of France is", outputs=[CompletionOutput(0, " Paris.")])
    >>> output.text
    ' Paris.'
    """

    request_id: str
    prompt: str | None
    """The prompt's text; None for a prompt of token ids, and for a chat."""
    prompt_token_ids: list[int] = field(default_factory=list)
    outputs: list[CompletionOutput] = field(default_factory=list)
    prompt_logprobs: list[LogprobsOfPosition | None] | None = None
    finished: bool = True
    num_cached_tokens: int | None = None
    """Number of the prompt's tokens that were in the cache."""
    metrics: RequestMetrics | None = None
    error: GridworkError | None = None
    """With `on_error="return"`: why there is no answer."""

    @property
    def text(self) -> str:
        """Text of the first answer. Raises the error of a request that failed."""
        if self.error is not None:
            raise self.error
        return self.outputs[0].text


@dataclass(frozen=True)
class EmbeddingOutput:
    """A text's vector."""

    embedding: list[float]

    @property
    def hidden_size(self) -> int:
        """Number of elements."""
        return len(self.embedding)


@dataclass(frozen=True)
class TokenVectorsOutput:
    """A vector for each token of a text."""

    data: list[list[float]]
    """A vector for each token."""


@dataclass(frozen=True)
class ClassificationOutput:
    """Probabilities of a text's labels."""

    probs: list[float]
    """A probability for each of `labels`."""
    labels: list[str]

    @property
    def label(self) -> str:
        """The likeliest label."""
        return self.labels[self.probs.index(max(self.probs))]


@dataclass(frozen=True)
class ScoringOutput:
    """How well two texts fit together."""

    score: float


@dataclass(frozen=True)
class RerankResult:
    """A document, with its place in the list that was given."""

    index: int
    relevance_score: float
    document: str


@dataclass
class _PoolingResult:
    request_id: str
    prompt: str | None
    error: GridworkError | None = field(default=None, kw_only=True)
    """With `on_error="return"`: why there is no result."""


@dataclass
class EmbeddingRequestOutput(_PoolingResult):
    """The vector of a text."""

    outputs: EmbeddingOutput


@dataclass
class TokenVectorsRequestOutput(_PoolingResult):
    """The vectors of a text's tokens."""

    outputs: TokenVectorsOutput


@dataclass
class ClassificationRequestOutput(_PoolingResult):
    """The labels of a text."""

    outputs: ClassificationOutput


@dataclass
class ScoringRequestOutput(_PoolingResult):
    """How well two texts go together."""

    outputs: ScoringOutput
