"""`gridwork download MODEL`: fetches a model from the hub as the server would, before one is started."""

import argparse

from gridwork.tools import preparing


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "download",
        help="fetch a model from the Hugging Face hub",
        description="Fetches the files of a model that the server would fetch, into the hub's cache, and prints their "
        "folder. Files that have arrived before are kept. A model that is complete in the cache is not fetched again.",
    )
    parser.add_argument("model", metavar="MODEL", help="name on the hub")
    preparing.add_flags(parser)
    parser.set_defaults(run=run, takes_flags=False)


def run(args: argparse.Namespace) -> int:
    """0: the folder is printed. Raises ModelError when there is none."""
    from gridwork_server.prepare.model_folder import download

    with preparing.preparing():
        print(download(args.model, preparing.options(args)))
    return 0
