"""A process of python_api.py: a class `LLM` answers a list of prompts. Reads a job as JSON, and prints the figures.

It runs in the environment of what it measures, and so imports nothing of this project but that.
"""

import importlib
import json
import sys
import time
from typing import Any


def main() -> None:
    job = json.load(sys.stdin)
    started = time.perf_counter()
    package: Any = importlib.import_module(job["package"])
    llm = package.LLM(job["model"], **job["options"])
    llm.generate(["Hello"], package.SamplingParams(temperature=0, max_tokens=1), use_tqdm=False)
    first_token_s = time.perf_counter() - started
    warm = package.SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
    llm.generate(["Count to ten, slowly."] * 4, warm, use_tqdm=False)
    params = [package.SamplingParams(temperature=0, max_tokens=each, ignore_eos=True) for each in job["max_tokens"]]
    began = time.perf_counter()
    outputs = llm.generate(job["prompts"], params, use_tqdm=False)
    seconds = time.perf_counter() - began
    tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    print(json.dumps({"first_token_s": first_token_s, "seconds": seconds, "tokens": tokens}), flush=True)


if __name__ == "__main__":
    main()
