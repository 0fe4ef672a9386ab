"""Calls encoder-decoder models: the encoder computes the prompt, the decoder the generated tokens."""

import inspect
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gridwork_server.errors import PathError
from gridwork_server.lengths.call_lengths import CallLengths
from gridwork_server.paths.cache_tree import CacheSnapshot, spec_of
from gridwork_server.paths.caller import CacheProbe, Within, logits_of

_SHORT = 5
"""Number of tokens of the shortest input whose cache is examined."""


@dataclass
class _State:
    """State of B sequences besides their tokens, padded on the left."""

    cache: Any
    hidden: torch.Tensor
    """Output of the encoder, `[B, source_length, hidden_size]`."""
    mask: torch.Tensor
    """Attention mask of the source, int64 `[B, source_length]`."""


class Seq2SeqCaller:
    """Counterpart of `Caller` for models with an encoder. A sequence's prompt is the source; the decoder computes its
    start token and the generated tokens."""

    def __init__(self, model: Any, device: torch.device) -> None:
        """Raises PathError when no config names the decoder's start token."""
        self.model, self.device = model, device
        self.lengths: CallLengths | None = None
        """Modules of the model that depend on how many tokens are computed together; None when there are none."""
        self._start = start_token(model)
        self._encoded: Any = None
        """Class of the encoder's output."""
        self._takes = set(inspect.signature(model.forward).parameters)
        self._forced_first, self._never = _token_rules(model)

    def offset(self, num_prompt: np.ndarray) -> np.ndarray:
        """See Caller. The decoder's cache holds the start token but not the prompt."""
        return num_prompt - 1

    def first_tokens(self, num_first: int) -> int:
        """See Caller. The decoder's first call has only the start token; the encoder computes the prompt."""
        return 1

    def plain(self, tokens: np.ndarray, num_prompt: int) -> torch.Tensor:
        """Logits after the start token and after each generated token: `[1 + num_generated, vocab_size]`."""
        source, target = self._split(tokens, num_prompt)
        out = self.model(
            input_ids=source, attention_mask=torch.ones_like(source), decoder_input_ids=target, use_cache=False
        )
        return self._with_token_rules(logits_of(out)[0], np.arange(target.shape[1]))

    def first(
        self, tokens: np.ndarray, num_prompt: int, keep_all: bool, within: Within = nullcontext
    ) -> tuple[torch.Tensor, _State]:
        """See Caller. Returns logits `[1 + num_generated, vocab_size]`. within: makes the context for the decoder's
        call."""
        source, target = self._split(tokens, num_prompt)
        logits, state = self._first(source, target, within)
        return self._with_token_rules(logits[0], np.arange(target.shape[1])), state

    def _first(
        self, source: torch.Tensor, target: torch.Tensor, within: Within = nullcontext
    ) -> tuple[torch.Tensor, _State]:
        mask = torch.ones_like(source)
        encoded = self.model.get_encoder()(input_ids=source, attention_mask=mask, return_dict=True)
        self._encoded = type(encoded)
        with within():
            return self._decode(target, _State(None, encoded[0], mask), torch.ones_like(target))

    def next(self, tokens: np.ndarray, state: _State, lengths: np.ndarray) -> tuple[torch.Tensor, _State]:
        """See Caller. lengths: numbers of tokens that the decoder has computed."""
        longest = int(lengths.max())
        mask = torch.from_numpy(np.arange(longest + 1) >= (longest - lengths)[:, None]).to(torch.int64)
        target = torch.from_numpy(tokens)[:, None].to(self.device)
        logits, state = self._decode(target, state, mask.to(self.device))
        return self._with_token_rules(logits[:, -1], lengths), state

    def probe(self, token: int, share: bool) -> CacheProbe:
        """See Caller. The longer input has two more tokens on both sides."""
        source = torch.full((2, _SHORT + 2), token, dtype=torch.int64, device=self.device)
        target = torch.full_like(source[:, :3], token)
        state = self._first(source[:1, :_SHORT], target[:1, :1])[1]
        alone = CacheSnapshot.of(state)
        longer = CacheSnapshot.of(self._first(source[:1], target[:1])[1])
        if not share:
            return CacheProbe(alone, longer, None, 2)
        pair = CacheSnapshot.of(self._first(source[:, :_SHORT], target[:, :1])[1])
        decoded = CacheSnapshot.of(self.next(np.array([token]), state, np.array([1]))[1])
        return CacheProbe(alone, longer, spec_of(alone, longer, pair, decoded, 1), 2)

    def _split(self, tokens: np.ndarray, num_prompt: int) -> tuple[torch.Tensor, torch.Tensor]:
        source = torch.from_numpy(tokens[:num_prompt].astype(np.int64))[None]
        target = np.concatenate([[self._start], tokens[num_prompt:]]).astype(np.int64)
        return source.to(self.device), torch.from_numpy(target)[None].to(self.device)

    def _decode(self, target: torch.Tensor, state: _State, mask: torch.Tensor) -> tuple[torch.Tensor, _State]:
        arguments: dict[str, Any] = {"use_cache": True, "return_dict": True}
        if state.cache is not None:
            arguments["past_key_values"] = state.cache
        if "decoder_attention_mask" in self._takes:
            arguments["decoder_attention_mask"] = mask
        out = self.model(
            encoder_outputs=self._encoded(last_hidden_state=state.hidden),
            attention_mask=state.mask,
            decoder_input_ids=target,
            **arguments,
        )
        cache = getattr(out, "past_key_values", None)
        if cache is None:
            raise PathError("forward() returns no cache")
        return logits_of(out), _State(cache, state.hidden, state.mask)

    def _with_token_rules(self, logits: torch.Tensor, num_before: np.ndarray) -> torch.Tensor:
        """Applies the generation config's rules for single tokens. num_before: for every row, the number of tokens that
        the decoder computed before it."""
        if self._never:
            logits[:, self._never] = -torch.inf
        if self._forced_first is not None:
            rows = torch.from_numpy(num_before == 0).to(logits.device)
            forced = torch.full_like(logits[0], -torch.inf)
            forced[self._forced_first] = 0
            logits = torch.where(rows[:, None], forced, logits)
        return logits


def start_token(model: Any) -> int:
    """First token of a decoder's input. Raises PathError when no config names one."""
    configs = (model.generation_config, model.config, getattr(model.config, "decoder", None))
    for name in ("decoder_start_token_id", "bos_token_id"):
        for config in configs:
            token = getattr(config, name, None)
            if token is not None:
                return int(token[0] if isinstance(token, list) else token)
    raise PathError("neither config.json nor generation_config.json has a decoder_start_token_id")


def _token_rules(model: Any) -> tuple[int | None, list[int]]:
    """Forced first token of every answer, or None, and the tokens that are never generated."""
    config = model.generation_config
    forced = getattr(config, "forced_bos_token_id", None)
    words = getattr(config, "bad_words_ids", None) or []
    never = {int(word[0]) for word in words if len(word) == 1} | set(getattr(config, "suppress_tokens", None) or [])
    return None if forced is None else int(forced), sorted(never)
