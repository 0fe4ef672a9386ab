"""Tokens of a shard against those of `generate()` on the CPU.

In bfloat16, rounding may choose another token where two are about equally likely. So each served token is compared with
what `generate()` computes after the same tokens: the token may be less likely than the best one only by as much as
`generate()` in bfloat16 differs from itself in float32.
"""

import copy
from pathlib import Path
from typing import Any

import torch

from conformance.generation import prompts

_PROMPTS = 4
"""Prompts whose tokens are compared in bfloat16: a call of `generate()` for each token takes time."""
_ALLOWED = 4.0
"""Maximum lag of a token behind the best one, in multiples of the rounding of `generate()` itself. A logit that is off
by twice that rounding, above or below, is not an error."""


def difference(expected: list[list[int]], given: list[list[int]]) -> str:
    """The prompts with other tokens, or nothing."""
    wrong = []
    for prompt, want, got in zip(prompts(), expected, given, strict=True):
        if want != got:
            same = next((i for i, (a, b) in enumerate(zip(want, got, strict=False)) if a != b), len(want))
            wrong.append(f"after a prompt of {len(prompt)}, tokens differ from token {same} on")
    return "; ".join(wrong)


def lag(folder: Path, model_class: Any, served: list[list[int]]) -> str:
    """The first token that rounding does not explain, or nothing."""
    exact, rounded = (
        model_class.from_pretrained(folder, dtype=dtype).eval() for dtype in (torch.float32, torch.bfloat16)
    )
    for prompt, tokens in list(zip(prompts(), served, strict=True))[:_PROMPTS]:
        for position, token in enumerate(tokens):
            before = [*prompt, *tokens[:position]]
            right, noisy = _logits(exact, before), _logits(rounded, before)
            rounding = float((right - noisy).abs().max())
            behind = float(right.max() - right[token])
            if behind > _ALLOWED * rounding:
                return (
                    f"token {position} after a prompt of {len(prompt)} is {behind:.3g} less likely than the best, in "
                    f"logits; generate() itself rounds by {rounding:.3g}"
                )
    return ""


def _logits(model: Any, tokens: list[int]) -> Any:
    """float32 `[vocab_size]`: logits of `generate()` after these tokens. A model with state of its own is copied."""
    fresh = copy.deepcopy(model) if getattr(model, "_is_stateful", False) else model
    with torch.inference_mode():
        out = fresh.generate(
            torch.tensor([tokens]),
            attention_mask=torch.ones(1, len(tokens), dtype=torch.int64),
            max_new_tokens=1,
            do_sample=False,
            num_beams=1,
            eos_token_id=None,
            forced_eos_token_id=None,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
    return out.logits[0][0].float()
