"""Cost of `--quantize` in quality: the perplexity of a model on a text, as a Markdown table.

.venv/bin/python benchmarks/tools/perplexity.py --model-id .cache/models/SmolLM2-135M-Instruct
"""

import argparse
import math
from pathlib import Path

import torch
from gridwork_kernels.quantized_linear import METHODS
from gridwork_server.config import ShardConfig
from gridwork_server.model.loading import load
from gridwork_server.parallel.group import RankGroup
from transformers import AutoTokenizer

TEXT = Path(__file__).resolve().parents[1] / "text/bridges.txt"


@torch.inference_mode()
def perplexity(folder: Path, text: str, dtype: str, quantize: str | None) -> float:
    """Perplexity of the text by the model's own forward(), with the linear layers that the shard would use."""
    config = ShardConfig(model_path=folder, socket="", dtype=dtype, quantize=quantize, model_impl="solo")
    model = load(config, RankGroup()).model
    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt").input_ids
    logits = model(ids).logits[0, :-1].float()
    return math.exp(torch.nn.functional.cross_entropy(logits, ids[0, 1:]).item())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model-id", type=Path, required=True, help="a model's folder")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--text", type=Path, default=TEXT)
    args = parser.parse_args()
    text = args.text.read_text()
    plain = perplexity(args.model_id, text, args.dtype, None)
    print("| weights | perplexity | |\n|---|---|---|")
    print(f"| {args.dtype} | {plain:.2f} | |")
    for method in METHODS:
        quantized = perplexity(args.model_id, text, args.dtype, method)
        print(f"| {method} | {quantized:.2f} | {quantized / plain - 1:+.1%} |")


if __name__ == "__main__":
    main()
