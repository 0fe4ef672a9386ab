"""Goes over every causal language model of Transformers: `python -m conformance [TYPE …]`."""

import argparse
import os
import sys
import tempfile
import warnings
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
warnings.filterwarnings("ignore")
sys.path.insert(0, str(Path(__file__).parent.parent))


def main() -> int:
    """Prints a line for every type; the exit code tells whether one was wrong."""
    parser = argparse.ArgumentParser()
    parser.add_argument("types", nargs="*")
    parser.add_argument("--model-impl", default="auto")
    parser.add_argument("--seq2seq", action="store_true")
    args = parser.parse_args()
    import torch
    import transformers
    from loguru import logger
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    )

    from conformance.generation import CAUSAL, SEQ2SEQ, check

    torch.set_num_threads(1)
    logger.remove()
    transformers.logging.set_verbosity_error()
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        names = MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES if args.seq2seq else MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        for name in args.types or names:
            verdict = check(name, Path(folder) / name, SEQ2SEQ if args.seq2seq else CAUSAL, model_impl=args.model_impl)
            wrong += bool(verdict.path) and not verdict.exact
            state = (
                "exact" if verdict.exact else "REF" if verdict.reference_error else "WRONG" if verdict.path else "FAIL"
            )
            print(
                f"{state:6} {name:28} {verdict.path:8} {verdict.seconds:4.1f}s {verdict.error or verdict.reference_error} "
                f"| {verdict.reason}",
                flush=True,
            )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
