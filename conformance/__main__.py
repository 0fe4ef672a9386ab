"""Serves a tiny random model of every type of Transformers and compares its output with Transformers itself.

    python -m conformance [--section SECTION] ... [--write FILE] [TYPE ...]

Prints a line for every type. The exit code is 1 when a type is wrong. `--write` writes the page docs/models.md.
"""

import argparse
import os
import sys
import tempfile
import warnings
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
warnings.filterwarnings("ignore")

SECTIONS = ("causal", "seq2seq", "encoders", "tensor-parallel", "scaled-rope", "planted")


def main() -> int:
    """Runs the chosen sections; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", help="model types; default: all")
    parser.add_argument("--section", choices=SECTIONS, action="append", dest="sections")
    parser.add_argument("--model-impl", default="auto", help="path that serves the models")
    parser.add_argument("--write", type=Path, metavar="FILE", help="file for the tables")
    arguments = parser.parse_args()
    import torch
    import transformers
    from loguru import logger

    from conformance import sections
    from conformance.table import page

    torch.set_num_threads(1)
    logger.remove()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    found = sections.Found()
    wanted = arguments.sections or SECTIONS
    with tempfile.TemporaryDirectory() as folder:
        if "tensor-parallel" in wanted:
            found.tensor_parallel = sections.tensor_parallel(arguments.types, Path(folder))
        for name in ("causal", "seq2seq"):
            if name in wanted:
                found.generators[name] = sections.generators(
                    name, arguments.types, Path(folder), model_impl=arguments.model_impl
                )
        if "planted" in wanted:
            found.planted = sections.planted(arguments.types, Path(folder))
        if "scaled-rope" in wanted:
            found.scaled_rope = sections.scaled_rope(arguments.types, Path(folder))
        if "encoders" in wanted:
            found.encoders = sections.encoders(arguments.types)
    if arguments.write:
        arguments.write.write_text(page(found))
    wrong = found.wrong()
    print(f"wrong: {', '.join(wrong) or 'none'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
