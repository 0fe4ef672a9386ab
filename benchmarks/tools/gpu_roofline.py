"""Compares the shard with a GPU's limits: decoding with its memory bandwidth, prefill with its matrix units.

    .venv/bin/python benchmarks/tools/gpu_roofline.py
    .venv/bin/python benchmarks/tools/gpu_roofline.py --block-size 256 --attention varlen
    .venv/bin/python benchmarks/tools/gpu_roofline.py --tiny --device cpu     # a smoke test

The model is a Llama of 8 billion random bfloat16 weights, made on the device; no file is read. The program first
compares every attention implementation with the reference in shapes of real models, then measures the limits of this
GPU, then steps of the real runner: model, cache, sampler and transfers to the host. Prints Markdown, and with --json
the same as JSON.
"""

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from gridwork_kernels import attention_choice
from gridwork_kernels.attention_choice import LayerDemands, Setting
from gridwork_server import attention
from gridwork_server._proto import shard_pb2 as pb
from gridwork_server.config import ShardConfig
from gridwork_server.model.generation_defaults import GenerationDefaults
from gridwork_server.model.loading import LoadedModel
from gridwork_server.parallel.group import RankGroup
from gridwork_server.paths.choice import choose
from gridwork_server.paths.decode_graphs import DEFAULT_SIZES
from gridwork_server.step.cache_size import CacheSize
from gridwork_server.step.overlapped import OverlappedSteps
from gridwork_server.step.runner import Runner
from loguru import logger

GREEDY = pb.SamplingParameters(greedy=True, temperature=1, top_p=1, typical_p=1, repetition_penalty=1)


@dataclass(frozen=True)
class Shape:
    """Sizes of the model and of the measurements."""

    vocab_size: int = 128_256
    hidden_size: int = 4096
    intermediate_size: int = 14_336
    layers: int = 32
    heads: int = 32
    kv_heads: int = 8
    batch: int = 64
    context_tokens: int = 2048
    prefill_tokens: int = 8192
    matrix: int = 8192  # rows and columns of the product that measures the peak
    copied_bytes: int = 4 << 30
    steps: int = 30

    @property
    def longest(self) -> int:
        """Maximum tokens of a sequence, prompt and decoded ones."""
        return max(self.context_tokens, self.prefill_tokens) + 2 * self.steps + 2

    def config(self) -> Any:
        """The LlamaConfig of the model."""
        from transformers import LlamaConfig

        sizes: dict[str, Any] = {
            name: getattr(self, name) for name in ("vocab_size", "hidden_size", "intermediate_size")
        }
        depth: dict[str, Any] = {"num_hidden_layers": self.layers, "num_attention_heads": self.heads}
        context: dict[str, Any] = {"max_position_embeddings": 2 * self.longest, "num_key_value_heads": self.kv_heads}
        return LlamaConfig(**sizes, **depth, **context, tie_word_embeddings=False)

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.heads

    @property
    def block_weights(self) -> int:
        """Number of weights in the layers, without embeddings and head."""
        attended = self.hidden_size * self.head_size * 2 * (self.heads + self.kv_heads)
        return self.layers * (attended + 3 * self.hidden_size * self.intermediate_size)

    @property
    def head_weights(self) -> int:
        return self.vocab_size * self.hidden_size

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of one token's keys and values in 16 bits."""
        return 2 * 2 * self.layers * self.kv_heads * self.head_size

    def decode_bytes(self, batch: int, context_tokens: int) -> int:
        """Minimum bytes that a decode step reads."""
        return 2 * (self.block_weights + self.head_weights) + batch * context_tokens * self.kv_bytes_per_token

    def prefill_flop(self, tokens: int) -> int:
        """FLOP of one prompt: each token with every weight of the layers and with the tokens before it, and one row of
        logits."""
        attended = 4 * self.layers * self.heads * self.head_size * tokens * (tokens + 1) // 2
        return 2 * (tokens * self.block_weights + self.head_weights) + attended


TINY = Shape(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=128,
    layers=2,
    heads=4,
    kv_heads=2,
    batch=4,
    context_tokens=40,
    prefill_tokens=96,
    matrix=64,
    copied_bytes=1 << 20,
    steps=3,
)


@dataclass(frozen=True)
class Measured:
    """A row of the result."""

    what: str
    ms: float
    reached: float
    unit: str
    share: float
    """`reached` over the measured limit of this device."""


def parity(setting: Setting, shape: Shape) -> dict[str, dict[str, str]]:
    """For each implementation and layer shape: `agrees`, or the reason why it cannot be used."""
    plain = LayerDemands(shape.heads, shape.kv_heads, shape.head_size, shape.head_size)
    layers = {
        "this model": plain,
        "window": LayerDemands(8, 2, 64, 64, window=4096),
        "capped scores": LayerDemands(8, 4, 256, 256, has_softcap=True),
        "sinks": LayerDemands(8, 1, 64, 64, has_sinks=True),
        "keys of 192, values of 128": LayerDemands(16, 16, 192, 128),
        "ALiBi": LayerDemands(8, 8, 128, 128, has_slopes=True),
    }
    on_gpu = setting.device.type == "cuda"
    names = attention_choice.ON_GPU if on_gpu else ("sdpa",)
    check = attention_choice.why_not if on_gpu else attention_choice.trial
    return {name: {what: check(name, setting, layer) or "agrees" for what, layer in layers.items()} for name in names}


def best_seconds(run: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Seconds of the fastest of several runs, one warm-up run included."""
    return min(_timed(run, device) for _ in range(repeats + 1))


def _timed(run: Callable[[], Any], device: torch.device) -> float:
    _wait(device)
    started = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def bandwidth_bytes_per_s(device: torch.device, shape: Shape) -> float:
    """The higher bandwidth of copying (reads and writes counted) and of reading alone."""
    source = torch.ones(shape.copied_bytes // 2, dtype=torch.bfloat16, device=device)

    def copy() -> None:
        source[: len(source) // 2].copy_(source[len(source) // 2 :])

    matrix = source.view(-1, 1024)
    vector = torch.ones(1024, dtype=torch.bfloat16, device=device)
    ways = (copy, lambda: matrix @ vector)
    return max(shape.copied_bytes / best_seconds(way, device, 10) for way in ways)


def matmul_flop_per_s(device: torch.device, shape: Shape) -> float:
    """FLOP/s of a product of two large matrices in bfloat16."""
    a, b = (torch.randn(shape.matrix, shape.matrix, dtype=torch.bfloat16, device=device) for _ in range(2))
    return float(2 * shape.matrix**3 / best_seconds(lambda: a @ b, device, 10))


def runner_for(shape: Shape, device: torch.device, args: argparse.Namespace) -> tuple[Runner, CacheSize]:
    """A warmed-up runner of a random model, made as `gridwork_server.model.loading` would make it, and its cache."""
    from transformers import AutoModelForCausalLM

    longest = shape.longest
    content = shape.config()
    attention.register()
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(content, dtype=torch.bfloat16, attn_implementation=attention.NAME)
    model = model.to(device).eval().requires_grad_(False)
    group = RankGroup()
    sizes = args.cuda_graphs if args.cuda_graphs is not None else DEFAULT_SIZES
    choice = choose(
        model,
        "paged",
        args.attention,
        torch.bfloat16,
        device,
        group,
        block_size=args.block_size,
        decode_sizes=sizes if device.type == "cuda" else (),
    )
    count = sum(parameter.numel() for parameter in model.parameters())
    loaded = LoadedModel(
        model=model,
        config=content,
        dtype=torch.bfloat16,
        device=device,
        path=choice.path,
        path_reason=choice.reason,
        vocab_size=choice.vocab_size,
        eos_token_ids=[],
        generation=GenerationDefaults([]),
        max_context_tokens=2 * longest,
        num_parameters=count,
        weight_bytes=2 * count,
        notes=[],
    )
    config = ShardConfig(
        Path(),
        socket="",
        device=device.type,
        block_size=args.block_size,
        kv_cache_memory_bytes=None if device.type == "cuda" else 1 << 26,
    )
    runner = Runner(loaded, config, group)
    limits = pb.WarmupRequest(
        block_size_tokens=args.block_size,
        max_batch_tokens=shape.prefill_tokens,
        max_sequences=shape.batch,
        max_total_tokens=longest,
    )
    return runner, runner.warm_up(limits)


class Sequences:
    """Sequences with all their blocks, which decode together."""

    def __init__(self, runner: Runner, count: int, prompt_tokens: int, shape: Shape) -> None:
        self._device, self._ids = runner.loaded.device, range(count)
        self._steps = OverlappedSteps(runner)
        self.prefill_ms = 0.0
        blocks = -(-(prompt_tokens + 2 * shape.steps + 2) // runner.config.block_size)
        for id in self._ids:
            tokens = [(7 * i + 13 * id) % runner.loaded.vocab_size for i in range(prompt_tokens)]
            for done in range(0, prompt_tokens, shape.prefill_tokens):
                step = pb.Step(sequence_ids=[id], num_tokens=[min(shape.prefill_tokens, prompt_tokens - done)])
                step.num_new_blocks.append(0 if done else blocks)
                if not done:
                    step.new_blocks.extend(range(id * blocks, (id + 1) * blocks))
                    step.admitted.add(id=id, token_ids=tokens, num_prompt_tokens=prompt_tokens, sampling=GREEDY)
                self.prefill_ms += self._run([step])

    def decode(self, count: int) -> float:
        """Decodes `count` tokens of each; returns the milliseconds a step. Steps are sent ahead, as by the router."""
        ones = [1] * len(self._ids)
        step = pb.Step(sequence_ids=self._ids, num_tokens=ones, num_new_blocks=[0] * len(ones))
        return self._run([step] * count) / count

    def release(self) -> None:
        self._run([pb.Step(released=self._ids)])

    def _run(self, steps: "list[pb.Step]") -> float:
        results: list[pb.StepResult] = []
        _wait(self._device)
        started = time.perf_counter()
        for step in steps:
            self._steps.submit(step, results.append)
        self._steps.flush()
        _wait(self._device)
        ms = 1e3 * (time.perf_counter() - started)
        for result in results:
            if result.failures:
                raise RuntimeError(result.failures[0].message)
        return ms


def decode(runner: Runner, shape: Shape, batch: int, context_tokens: int, bandwidth: float) -> Measured:
    """The mean decode step of `batch` sequences with about `context_tokens` each."""
    sequences = Sequences(runner, batch, context_tokens, shape)
    sequences.decode(shape.steps)
    ms = sequences.decode(shape.steps)
    sequences.release()
    # The context in the middle of the measured steps.
    bytes_per_s = shape.decode_bytes(batch, context_tokens + 3 * shape.steps // 2) / (ms / 1e3)
    what = f"decode, {batch} × {context_tokens} tokens"
    return Measured(what, ms, bytes_per_s / 1e12, "TB/s", bytes_per_s / bandwidth)


def prefill(runner: Runner, shape: Shape, flop_per_s: float) -> Measured:
    """The prefill of a prompt in one step, the fastest of four."""
    times = []
    for _ in range(4):
        sequences = Sequences(runner, 1, shape.prefill_tokens, shape)
        times.append(sequences.prefill_ms)
        sequences.release()
    reached = shape.prefill_flop(shape.prefill_tokens) / (min(times) / 1e3)
    what = f"prefill of {shape.prefill_tokens} tokens"
    return Measured(what, min(times), reached / 1e12, "TFLOP/s", reached / flop_per_s)


def measure(shape: Shape, device: torch.device, args: argparse.Namespace) -> dict[str, Any]:
    """Runs all measurements; returns what --json writes."""
    found = parity(Setting(device, torch.bfloat16, args.block_size), shape)
    bandwidth, flop_per_s = bandwidth_bytes_per_s(device, shape), matmul_flop_per_s(device, shape)
    runner, _ = runner_for(shape, device, args)
    short = min(128, shape.context_tokens)
    rows = [
        decode(runner, shape, 1, short, bandwidth),
        decode(runner, shape, 1, shape.context_tokens, bandwidth),
        decode(runner, shape, shape.batch, shape.context_tokens, bandwidth),
        prefill(runner, shape, flop_per_s),
    ]
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "attention": runner.path.attention_name,
        "decode_sizes": getattr(runner.path, "decode_sizes", []),
        "parameters": runner.loaded.num_parameters,
        "bandwidth_tb_per_s": bandwidth / 1e12,
        "matmul_tflop_per_s": flop_per_s / 1e12,
        "parity": found,
        "measured": [asdict(row) for row in rows],
    }


def markdown(result: dict[str, Any]) -> list[str]:
    """Two tables, and a line about the device."""
    shapes = list(next(iter(result["parity"].values())))
    lines = [
        f"{result['device']}, PyTorch {result['torch']}, attention {result['attention']}, decode steps as graphs: "
        f"{result['decode_sizes'] or 'none'}, {result['parameters'] / 1e9:.2f} billion weights",
        "",
        f"Measured limits: {result['bandwidth_tb_per_s']:.2f} TB/s of memory, {result['matmul_tflop_per_s']:.1f} "
        "TFLOP/s of matrix products in bfloat16.",
        "",
        f"| attention | {' | '.join(shapes)} |",
        f"|---|{'---|' * len(shapes)}",
        *(f"| {name} | {' | '.join(cells[shape] for shape in shapes)} |" for name, cells in result["parity"].items()),
        "",
        "| what | ms | reached | share of the limit |",
        "|---|---|---|---|",
    ]
    for row in result["measured"]:
        lines.append(f"| {row['what']} | {row['ms']:.2f} | {row['reached']:.2f} {row['unit']} | {row['share']:.1%} |")
    return lines


def _sizes(text: str) -> tuple[int, ...]:
    """`1,2,4` as sizes, `0` as none."""
    return tuple(sorted({int(part) for part in text.split(",")} - {0}))


def main(arguments: list[str] | None = None) -> int:
    """Runs all measurements. Returns 1 when an attention implementation differs from the reference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="tiny model that runs anywhere; its figures mean nothing")
    parser.add_argument("--attention", default="auto", help="as the shard has it")
    parser.add_argument("--block-size", type=int, default=16, metavar="TOKENS")
    parser.add_argument("--cuda-graphs", type=_sizes, metavar="SIZES", help="as the launcher's flag")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args(arguments)
    if args.device == "cuda" and not torch.cuda.is_available():
        print("PyTorch sees no GPU; --tiny --device cpu only shows that the program runs", file=sys.stderr)
        return 1
    logger.remove()
    logger.add(sys.stderr, level="WARNING")
    logging.disable(logging.WARNING)
    device = torch.device("cuda", 0) if args.device == "cuda" else torch.device("cpu")
    result = measure(TINY if args.tiny else Shape(), device, args)
    print("\n".join(markdown(result)))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    wrong = [name for name, cells in result["parity"].items() if any("differ from" in cell for cell in cells.values())]
    if wrong:
        print(f"not what the reference gives: {', '.join(wrong)}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
