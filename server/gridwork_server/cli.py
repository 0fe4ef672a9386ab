"""The command line of `gridwork-server`."""

import argparse
import os
import sys
from pathlib import Path

from gridwork_server import __version__, logs
from gridwork_server.config import ShardConfig, parse_bytes, parse_sizes
from gridwork_server.prepare.cli import register as register_prepare


def main(arguments: list[str] | None = None) -> int:
    """Runs a subcommand and returns the exit code."""
    parser = argparse.ArgumentParser(prog="gridwork-server", description="The shard of Gridwork, and its tools.")
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--log-level", default=os.environ.get("LOG_LEVEL", "info"), help=argparse.SUPPRESS)
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    register_prepare(subparsers)
    _register_serve(subparsers)
    args = parser.parse_args(arguments)
    logs.set_up(args.log_level)
    return int(args.run(args))


def _register_serve(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    serve = subparsers.add_parser("serve", help="run a shard", description="Runs one rank of a shard group.")
    serve.add_argument("--model-path", type=Path, required=True, help="the model's folder")
    serve.add_argument("--socket", required=True, help="unix socket to listen on, or host:port")
    serve.add_argument("--rank", type=int, default=0)
    serve.add_argument("--world-size", type=int, default=1)
    serve.add_argument("--master-addr", default="127.0.0.1", help="where rank 0 listens for the other ranks")
    serve.add_argument("--master-port", type=int, default=29500)
    serve.add_argument("--meeting-file", type=Path, help="an empty file in which ranks of one machine find each other")
    serve.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    serve.add_argument("--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto")
    serve.add_argument(
        "--model-impl",
        choices=["auto", "paged", "batched", "solo", "transformers", "native"],
        default="auto",
        help="path that the model runs on (transformers: auto, native: paged)",
    )
    serve.add_argument(
        "--task",
        choices=["auto", "generate", "embed", "classify", "rerank", "fill-mask"],
        default="auto",
        help="what the model is served for (auto: what its folder says)",
    )
    serve.add_argument(
        "--generation-config",
        default="auto",
        metavar="auto|none|DIR",
        help="where defaults of requests come from (auto: generation_config.json of the model)",
    )
    serve.add_argument(
        "--attention",
        choices=["auto", "cpu", "flash-attn", "varlen", "triton", "sdpa", "torch", "reference"],
        default="auto",
        help="attention implementation (torch: sdpa)",
    )
    serve.add_argument("--disable-fusion", action="store_true", help="run the model's own layers, unchanged")
    serve.add_argument("--quantize", choices=["int8", "int4"], help="keep weights in 8 or 4 bits, on CPUs")
    serve.add_argument("--compile", action="store_true", help="compile the model, or take what was compiled before")
    serve.add_argument("--block-size", type=int, default=16, help="tokens in a block of the cache")
    serve.add_argument(
        "--cuda-graphs", type=_sizes, help="batch sizes of decodes to record as CUDA graphs, 1,2,4; 0: none"
    )
    serve.add_argument("--kv-cache-memory", type=_bytes, help="memory for the cache over all ranks, e.g. 4GiB")
    serve.add_argument("--cuda-memory-fraction", type=float, default=1.0)
    serve.add_argument("--trust-remote-code", action="store_true", help="run Python code of the model's folder")
    serve.add_argument("--code-revision", help="branch, tag or commit of Python code on the hub")
    serve.add_argument("--serve-tokenizer", action="store_true", help="tokenize for the router, by the model's code")
    serve.add_argument("--cpu-threads", type=_threads, help="threads of this rank (cores / ranks)")
    serve.add_argument("--revision")
    serve.add_argument("--otlp-endpoint", help="OpenTelemetry collector, gRPC")
    serve.add_argument("--otlp-service-name", default="gridwork.shard")
    serve.add_argument("--log-level", default=argparse.SUPPRESS)
    serve.set_defaults(run=_run_serve)


def _bytes(text: str) -> int:
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _sizes(text: str) -> tuple[int, ...]:
    try:
        return parse_sizes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _threads(text: str) -> int:
    cores = len(os.sched_getaffinity(0))
    if not text.strip().isdecimal() or not 1 <= int(text) <= cores:
        raise argparse.ArgumentTypeError(f"{text}: at least 1 and at most the {cores} cores that may be used")
    return int(text)


def _run_serve(args: argparse.Namespace) -> int:
    # OpenMP reads it when PyTorch is imported. Threads that spin while they wait take the cores from the router and
    # from each other: with one more busy process a step was seen to take ten times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # PyTorch asks for huge pages: weights and cache are read all over, and finding a small page's place takes a while.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if args.otlp_endpoint:
        os.environ.setdefault("OTEL_SERVICE_NAME", args.otlp_service_name)
    config = ShardConfig(
        model_path=args.model_path,
        socket=args.socket,
        rank=args.rank,
        world_size=args.world_size,
        master_addr=args.master_addr,
        master_port=args.master_port,
        meeting_file=args.meeting_file,
        device=args.device,
        dtype=args.dtype,
        model_impl={"transformers": "auto", "native": "paged"}.get(args.model_impl, args.model_impl),
        task=args.task,
        generation_config=args.generation_config,
        attention={"torch": "sdpa"}.get(args.attention, args.attention),
        fuse=not args.disable_fusion,
        quantize=args.quantize,
        compile=args.compile,
        block_size=args.block_size,
        cuda_graphs=args.cuda_graphs,
        kv_cache_memory_bytes=args.kv_cache_memory,
        cuda_memory_fraction=args.cuda_memory_fraction,
        trust_remote_code=args.trust_remote_code,
        code_revision=args.code_revision,
        serve_tokenizer=args.serve_tokenizer,
        cpu_threads=args.cpu_threads,
        revision=args.revision,
    )
    from gridwork_server.service.grpc_service import serve

    return serve(config, args.otlp_endpoint)


if __name__ == "__main__":
    sys.exit(main())
