"""Serves a tiny model of one type and compares it with Transformers: `conformance_type TYPE DEVICE FOLDER`.

Prints an `Outcome` as one line of JSON. In float32, greedy tokens equal those of `generate()` on the CPU. In bfloat16,
rounding may choose another token where two are about equally likely. So each served token is compared with what
`generate()` computes after the same tokens: the token may be less likely than the best one only by as much as
`generate()` in bfloat16 differs from itself in float32.
"""

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from conformance.generation import (
    CAUSAL,
    LIMITS,
    Verdict,
    build,
    first_line,
    own_error_in_16_bits,
    prompts,
    reference_tokens,
    served_tokens,
)

_PROMPTS = 4
"""Prompts whose tokens are compared in bfloat16: a call of `generate()` for each token takes time."""
_ALLOWED = 4.0
"""Maximum lag of a token behind the best one, in multiples of the rounding of `generate()` itself. A logit that is off
by twice that rounding, above or below, is not an error."""


@dataclass
class Outcome:
    """Result of a type. Problems are empty where there is none."""

    error: str = ""
    """The reason why nothing could be compared."""
    path: str = ""
    reason: str = ""
    """The reason why no faster path was chosen."""
    in_float32: str = ""
    path_in_bfloat16: str = ""
    in_bfloat16: str = ""
    not_in_bfloat16: str = ""
    """The reason why Transformers itself does not run the type in bfloat16."""
    seconds: float = 0.0


def main(name: str, device: str, folder: Path) -> Outcome:
    """Serves the type in both dtypes. Never raises."""
    import torch
    from loguru import logger

    torch.set_num_threads(2)
    logger.remove()
    started = time.monotonic()
    settings: dict[str, Any] = {"device": device, "block_size": LIMITS.block_size_tokens}
    try:
        model_class = build(name, folder, CAUSAL)
        expected = reference_tokens(folder, model_class)
    except Exception as error:
        return Outcome(error=f"Transformers itself makes no text: {first_line(error)}")
    found = Outcome()
    verdict, in_16_bits = Verdict(name), Verdict(name)
    try:
        tokens = served_tokens(folder, verdict, **settings)
        found.in_float32 = _difference(expected, tokens)
    except Exception as error:
        found.in_float32 = first_line(error)
    try:
        tokens = served_tokens(folder, in_16_bits, dtype="bfloat16", **settings)
        found.in_bfloat16 = _lag(folder, model_class, tokens)
    except Exception as error:
        found.not_in_bfloat16 = own_error_in_16_bits(folder, model_class)
        found.in_bfloat16 = "" if found.not_in_bfloat16 else first_line(error)
    found.path, found.reason, found.path_in_bfloat16 = verdict.path, verdict.reason, in_16_bits.path
    found.seconds = time.monotonic() - started
    return found


def _difference(expected: list[list[int]], given: list[list[int]]) -> str:
    """The prompts with other tokens, or nothing."""
    wrong = []
    for prompt, want, got in zip(prompts(), expected, given, strict=True):
        if want != got:
            same = next((i for i, (a, b) in enumerate(zip(want, got, strict=False)) if a != b), len(want))
            wrong.append(f"after a prompt of {len(prompt)}, tokens differ from token {same} on")
    return "; ".join(wrong)


def _lag(folder: Path, model_class: Any, served: list[list[int]]) -> str:
    """The first token that rounding does not explain, or nothing."""
    import torch

    exact, rounded = (
        model_class.from_pretrained(folder, dtype=dtype).eval() for dtype in (torch.float32, torch.bfloat16)
    )
    for prompt, tokens in list(zip(prompts(), served, strict=True))[:_PROMPTS]:
        for position, token in enumerate(tokens):
            before = [*prompt, *tokens[:position]]
            right, noisy = _logits(exact, before), _logits(rounded, before)
            rounding = float((right - noisy).abs().max())
            lag = float(right.max() - right[token])
            if lag > _ALLOWED * rounding:
                return (
                    f"token {position} after a prompt of {len(prompt)} is {lag:.3g} less likely than the best, in "
                    f"logits; generate() itself rounds by {rounding:.3g}"
                )
    return ""


def _logits(model: Any, tokens: list[int]) -> Any:
    """float32 `[vocab_size]`: logits of `generate()` after these tokens. A model with state of its own is copied."""
    import copy

    import torch

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


if __name__ == "__main__":
    print(json.dumps(asdict(main(sys.argv[1], sys.argv[2], Path(sys.argv[3])))))
