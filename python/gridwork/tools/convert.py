"""`gridwork convert SOURCE OUT`: GGUF files, pickled weights and adapters as folders of Transformers."""

import argparse
from pathlib import Path

from gridwork.tools import preparing


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "convert",
        help="write a GGUF file, pickled weights or an adapter as a folder of Transformers",
        description="Writes a model as a folder of Transformers with safetensors: a GGUF file, a folder with pickled "
        "weights, or an adapter of PEFT, which is merged onto its base.",
    )
    parser.add_argument("source", metavar="SOURCE", help="a .gguf file, a folder, or a name on the hub")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to make; it must not exist, or be empty")
    preparing.add_flags(parser)
    parser.set_defaults(run=run, takes_flags=False)


def run(args: argparse.Namespace) -> int:
    """0: the folder is complete, and printed. Raises ModelError when there is none."""
    from gridwork_server.prepare.model_folder import convert

    with preparing.preparing():
        convert(args.source, args.out.absolute(), preparing.options(args))
    print(args.out)
    return 0
