"""Throughput of the `batched` path: tokens per second with 16 clients over those with one client.

    make bench-batched

Makes random models of about 100 million parameters of two families without the attention interface, with the default
model's tokenizer, serves each, and sends short prompts with one client and with 16. Prints a Markdown table of medians
over the rounds. Nothing else should run on the machine.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from suite.load import Load, Turn, run_load
from suite.paths import ROOT
from suite.prompts import chat_prompts
from suite.servers import Contestant, running

CLIENTS = 16


def build(family: str, tokenizer: Path, folder: Path) -> int:
    """Saves a random model in float32 with a tokenizer; returns its number of parameters."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, BloomConfig, GPTJConfig

    vocab_size = len(AutoTokenizer.from_pretrained(tokenizer))
    configs: dict[str, Callable[[], BloomConfig | GPTJConfig]] = {
        "gptj": lambda: GPTJConfig(vocab_size=vocab_size, n_embd=640, n_layer=8, n_head=10, n_positions=2048),
        "bloom": lambda: BloomConfig(vocab_size=vocab_size, hidden_size=768, n_layer=9, n_head=12),
    }
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(configs[family]())
    model.generation_config.eos_token_id = None
    model.config.eos_token_id = None
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / file, folder / file)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": None}))
    return sum(parameter.numel() for parameter in model.parameters())


def measure(model: Path, gridwork: Path, dtype: str) -> tuple[Load, Load]:
    """Figures with one client, and with CLIENTS of them."""
    command = [str(gridwork), "--model-id", str(model), "--dtype", dtype, "--hostname", "127.0.0.1"]
    # Short prompts, since the subject is how decodes share a batch.
    texts = chat_prompts(64, seed=1)[::2]
    requests = [(Turn(text[:200], 64),) for text in texts]
    with running(Contestant("gridwork", command, str(model))) as server:
        run_load(server.url, str(model), requests[:4], clients=4)  # warm-up
        one = run_load(server.url, str(model), requests[::4], clients=1)
        return one, run_load(server.url, str(model), requests, clients=CLIENTS)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gridwork", type=Path, default=ROOT / "target/release/gridwork")
    parser.add_argument("--tokenizer", type=Path, default=ROOT / ".cache/models/SmolLM2-135M-Instruct")
    parser.add_argument("--dtype", default="auto", help="auto: float32, as the models are saved")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    print(f"| model | parameters | 1 client: tok/s | {CLIENTS} clients: tok/s | ratio |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for family in ("gptj", "bloom"):
            model = Path(folder) / family
            parameters = build(family, args.tokenizer.resolve(), model)
            rounds = []
            for index in range(args.rounds):
                print(f"{family}: round {index + 1} of {args.rounds}", file=sys.stderr, flush=True)
                rounds.append(measure(model, args.gridwork.resolve(), args.dtype))
            one = statistics.median(one.tokens_per_s for one, _many in rounds)
            many = statistics.median(many.tokens_per_s for _one, many in rounds)
            ratio = statistics.median(many.tokens_per_s / one.tokens_per_s for one, many in rounds)
            print(f"| {family} | {parameters / 1e6:.0f}M | {one:.0f} | {many:.0f} | **{ratio:.2f}** |", flush=True)


if __name__ == "__main__":
    main()
