"""Greedy answers of Transformers' own `generate()`, in float32 and one prompt at a time, as the tests' reference."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from .paths import REFERENCE_CACHE
from .text import spread, text_of_tokens

#: Relative difference of the two most likely tokens below which another order of summation may swap them. A case ends
#: before such a position.
TIE_MARGIN = 2e-4

LONGEST_PROMPT_TOKENS = 600


@dataclass(frozen=True)
class Case:
    """A prompt and its greedy continuation; `token_ids` has at most `max_new_tokens` entries, fewer after EOS."""

    prompt: str
    num_prompt_tokens: int
    max_new_tokens: int
    token_ids: tuple[int, ...]


def cases(
    folder: Path, number: int = 64, longest_prompt: int = LONGEST_PROMPT_TOKENS, longest_answer: int = 32
) -> list[Case]:
    """`number` prompts of 1 to `longest_prompt` tokens with answers of up to `longest_answer`, cached on disk."""
    key = _key(folder, number, longest_prompt, longest_answer)
    path = REFERENCE_CACHE / f"{folder.name}-{key}.json"
    if not path.exists():
        found = _compute(folder, number, longest_prompt, longest_answer)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps([asdict(case) for case in found]))
    return [Case(**entry | {"token_ids": tuple(entry["token_ids"])}) for entry in json.loads(path.read_text())]


def _key(folder: Path, *parameters: int) -> str:
    digest = hashlib.sha256(f"{transformers.__version__} {torch.__version__} {parameters} {TIE_MARGIN}".encode())
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        digest.update((folder / name).read_bytes())
    digest.update(Path(__file__).with_name("text.py").read_bytes())
    return digest.hexdigest()[:16]


@torch.inference_mode()
def _compute(folder: Path, number: int, longest_prompt: int, longest_answer: int) -> list[Case]:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    prompt_lengths = spread(number, 1, longest_prompt)
    answer_lengths = spread(number, 4, longest_answer)[::-1]
    found = []
    for index, (num_prompt, num_answer) in enumerate(zip(prompt_lengths, answer_lengths, strict=True)):
        prompt = text_of_tokens(tokenizer, num_prompt, start=index * 97)
        known, is_whole = greedy(model, tokenizer.encode(prompt).ids, num_answer)
        if not is_whole:
            num_answer = len(known)
        if num_answer:
            found.append(Case(prompt, num_prompt, num_answer, tuple(known)))
    assert len(found) > number * 0.8, "too many ties: the model's logits are too flat for a comparison"
    return found


def greedy(model: Any, ids: list[int], max_new_tokens: int) -> tuple[list[int], bool]:
    """The tokens of `generate()` up to the first tie, and whether there is none."""
    prompt = torch.tensor([ids])
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=model.generation_config.eos_token_id,
        pad_token_id=0,
        output_scores=True,
        return_dict_in_generate=True,
    )
    output = model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=config)
    answer: list[int] = output.sequences[0, len(ids) :].tolist()
    for position, scores in enumerate(output.scores):
        best = scores[0].topk(2).values
        if (best[0] - best[1]).item() < TIE_MARGIN * max(1.0, best[0].abs().item()):
            return answer[:position], False
    return answer, True


@torch.inference_mode()
def chat_answer(folder: Path, messages: list[dict[str, str]], max_new_tokens: int) -> tuple[str, int]:
    """The greedy answer to a chat by the model's own template, and the number of prompt tokens."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids = torch.tensor([tokenizer.encode(prompt, add_special_tokens=False)])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    output = model.generate(ids, do_sample=False, max_new_tokens=max_new_tokens)
    return str(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)), ids.shape[1]
