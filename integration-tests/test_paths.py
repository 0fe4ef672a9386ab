"""Models on other paths than `paged`, behind the real launcher: many clients, streams, and the reason in `/info`."""

from pathlib import Path
from typing import Any

import torch
from support.models import SMALL_T5, VOCAB_SIZE, tokenizer_file
from support.server import Server
from tokenizers import Tokenizer
from transformers import GPTJConfig, GPTJForCausalLM, T5ForConditionalGeneration

PROMPTS = [
    "A lighthouse keeper wrote a letter",
    "One",
    "The old railway line closed in the sixties, but its bridges",
]
COUNT = 12


@torch.inference_mode()
def expected(model: Any, tokenizer: Tokenizer) -> list[list[int]]:
    """Greedy tokens of each prompt alone."""
    answers = []
    for prompt in PROMPTS:
        ids = torch.tensor([tokenizer.encode(prompt).ids])
        length: dict[str, Any] = {"max_new_tokens": COUNT, "min_new_tokens": COUNT, "eos_token_id": None}
        out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0, **length)
        answers.append(out[0, -COUNT:].tolist())
    return answers


def check(model: Any, folder: Path, why: str) -> None:
    """Serves the model and compares the answers of several clients at once, and a streamed one."""
    model.save_pretrained(folder)
    tokenizer = tokenizer_file(folder)
    wanted = expected(model.eval(), tokenizer)
    with Server("--model-id", folder, "--dtype", "float32") as server:
        info = server.client.get("/info").json()
        assert info["model_impl"] == "batched"
        assert why in info["model_impl_reason"]
        assert why in server.log()
        assert (info["batch_invariant"], info["replay_invariant"]) == (False, False)
        assert "PyTorch's operations" in info["invariance_reason"]
        asked = {"max_new_tokens": COUNT, "ignore_eos": True}
        calls = [lambda prompt=prompt: server.client.generate(prompt, **asked) for prompt in PROMPTS * 3]
        answers = server.client.together(calls)
        assert [answer.token_ids for answer in answers] == wanted * 3
        assert server.client.generate_stream(PROMPTS[0], **asked).token_ids == wanted[0]


def test_an_encoder_decoder_generates(tmp_path: Path) -> None:
    torch.manual_seed(0)
    check(T5ForConditionalGeneration(SMALL_T5), tmp_path, "does not support Transformers' attention interface")


def test_an_older_family_generates(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"n_embd": 64, "n_layer": 3, "n_head": 4, "rotary_dim": 8, "n_positions": 512}
    config = GPTJConfig(vocab_size=VOCAB_SIZE, **sizes, bos_token_id=None, eos_token_id=0, initializer_range=0.2)
    check(GPTJForCausalLM(config), tmp_path, "does not support Transformers' attention interface")
