"""Measures `generate()` with static batches, in an environment of its own.

    generate_peer.py MODEL_FOLDER DTYPE < jobs.json

Reads jobs from the standard input and prints the seconds of each as a JSON list. A job: {"prompts": [str],
"max_tokens": [int], "batch": int}. A batch is padded to its longest prompt and runs until its longest answer is
complete; the benchmarks' models never end an answer themselves.
"""

import json
import sys
import time
from typing import Any


def run(model: Any, tokenizer: Any, prompts: list[str], max_tokens: list[int], batch: int) -> float:
    """Seconds for all prompts, in order, in batches of `batch`."""
    started = time.perf_counter()
    for first in range(0, len(prompts), batch):
        inputs = tokenizer(prompts[first : first + batch], return_tensors="pt", padding=True)
        model.generate(**inputs, max_new_tokens=max(max_tokens[first : first + batch]), do_sample=False)
    return time.perf_counter() - started


def main() -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    jobs = json.load(sys.stdin)
    tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], padding_side="left")
    dtype = getattr(torch, sys.argv[2])
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=dtype, attn_implementation="sdpa").eval()
    run(model, tokenizer, ["Count to ten, slowly."] * 4, [8] * 4, 4)  # warm-up
    print(json.dumps([run(model, tokenizer, job["prompts"], job["max_tokens"], job["batch"]) for job in jobs]))


if __name__ == "__main__":
    main()
