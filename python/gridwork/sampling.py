"""Parameters of a generation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from gridwork.errors import InvalidRequest


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How to generate. Values are checked by the server, which names the field that is wrong.

    >>> from gridwork import SamplingParams
    >>> SamplingParams(temperature=0.8, top_p=0.95, max_tokens=20).temperature
    0.8
    """

    n: int = 1
    """Number of answers to each prompt."""
    max_tokens: int | None = 16
    """Maximum number of tokens to generate; None: what the context has room for."""
    min_tokens: int = 0
    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest token."""
    top_p: float = 1.0
    top_k: int = 0
    """Sample from this many likeliest tokens; 0 and -1: from all."""
    min_p: float = 0.0
    typical_p: float = 1.0
    seed: int | None = None
    """The same seed with the same request gives the same text; None: a random one."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    bad_words: Sequence[str] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    logprobs: int | None = None
    """Report the log-probability of every token, and of this many likeliest ones at its position."""
    prompt_logprobs: int | None = None
    """The same for the prompt's tokens. Not in streams."""
    skip_special_tokens: bool = True
    logit_bias: Mapping[int, float] | None = None
    allowed_token_ids: Sequence[int] | None = None
    truncate_prompt_tokens: int | None = None
    """Keep this many tokens at the end of the prompt; -1: as many as the model takes."""
    structured_outputs: Mapping[str, Any] | None = None
    """Rules that the answer follows: one of `json`, `regex`, `choice`, `grammar`, `json_object`, `structural_tag`."""
    extra_args: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the HTTP API, such as `cache_salt` or `priority`."""

    @classmethod
    def of(cls, value: "SamplingParams | Mapping[str, Any] | None") -> "SamplingParams | None":
        """Reads parameters from a dictionary too, as SGLang's users give them. None: the model's own defaults.

        >>> from gridwork import SamplingParams
        >>> SamplingParams.of({"temperature": 0, "max_new_tokens": 5}).max_tokens
        5
        """
        if value is None or isinstance(value, cls):
            return value
        if not isinstance(value, Mapping):
            raise cls.refusal(value)
        given = {_OTHER_NAMES.get(name, name): each for name, each in value.items()}
        known = {each.name for each in fields(cls)}
        for name in given:
            if name not in known:
                raise InvalidRequest(
                    f"`{name}` is not a sampling parameter; known are {', '.join(sorted(known))}", field=name
                )
        return cls(**given)

    @staticmethod
    def refusal(value: object) -> InvalidRequest:
        """The error for a value that is no parameters."""
        return InvalidRequest(
            f"`sampling_params` is of type {type(value).__name__}; give SamplingParams, a dictionary, or a list with "
            "one of them for each prompt",
            field="sampling_params",
        )

    def body(self) -> dict[str, Any]:
        """Fields of the HTTP API. A field that is off is left out where that means the same."""
        found: dict[str, Any] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if value is None or each.name == "extra_args" or (each.name in _OFF and value == _OFF[each.name]):
                continue
            found[each.name] = value
        if self.logit_bias is not None:
            found["logit_bias"] = {str(token): bias for token, bias in self.logit_bias.items()}
        return found | dict(self.extra_args)


@dataclass(frozen=True, kw_only=True)
class ModelDefaults(SamplingParams):
    """The model's own defaults, with a seed."""

    def body(self) -> dict[str, Any]:
        """The seed alone."""
        return {"seed": self.seed}


_OTHER_NAMES = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens"}

_OFF: dict[str, object] = {
    "n": 1,
    "min_tokens": 0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "include_stop_str_in_output": False,
    "ignore_eos": False,
    "skip_special_tokens": True,
}
"""Values that mean the same as leaving the field out, whatever the model's own defaults are."""
