"""Compares the logits of two ranks with those of one, for every causal type with a tensor-parallel plan.

    python -m conformance.tensor_parallel [--world-size N] [--json FILE] [TYPE ...]

Prints a line for each type: `TYPE  exact: SHARE`, `TYPE  refused: REASON` or `TYPE  WRONG: ERROR`. The share is the
largest part of the weight bytes on one rank. The exit code is 1 when a type is wrong.
"""

import argparse
import json
import os
import select
import subprocess
import sys
import tempfile
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import torch
from gridwork_server.text import one_line

from conformance.shrink import CANNOT_GENERATE, VOCAB_SIZE, randomise, tiny_config

_START_S, _JOB_S, _OTHER_RANK_S = 120, 120, 20
"""Time limits: for the start of the ranks, for a model, and for other ranks after one has failed."""

_TOLERANCE = 1e-4
"""Largest difference of logits, as a share of the largest logit."""


@dataclass(frozen=True)
class Outcome:
    """Result of one type."""

    model_type: str
    verdict: str
    """`exact`, `refused` or `WRONG`."""
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.model_type:28} {self.verdict}{': ' if self.detail else ''}{self.detail}"


def types_with_a_plan() -> list[str]:
    """Names of the types that generate text and have a tensor-parallel plan in their config or text config."""
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    with_a_plan = []
    for model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        if model_type in CANNOT_GENERATE:
            continue
        config = CONFIG_MAPPING[model_type]()
        if config.base_model_tp_plan or config.get_text_config().base_model_tp_plan:
            with_a_plan.append(model_type)
    return sorted(with_a_plan)


def prompts() -> list[torch.Tensor]:
    """Token ids, `[1, length]`: two prompts longer than the windows of the tiny models, and a single token."""
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(3, VOCAB_SIZE, (1, length), generator=generator) for length in (31, 12, 1)]


@torch.inference_mode()
def logits_of(model: Any) -> list[torch.Tensor]:
    """Logits of each prompt, `[length, vocab]`, by a forward pass without a cache."""
    return [model(input_ids=prompt, use_cache=False).logits[0].float() for prompt in prompts()]


class Ranks:
    """Rank processes, started once for many models."""

    def __init__(self, world_size: int, folder: Path) -> None:
        """folder: for the logits of the ranks."""
        self.logits = folder / "logits.pt"
        self._world_size = world_size
        self._processes: list[subprocess.Popen[str]] = []

    def run(self, job: dict[str, str]) -> list[dict[str, Any]]:
        """Runs a model; returns each rank's answer: why it `refused` or `failed`, or its `weight_bytes` and `notes`."""
        if not self._processes:
            self._start()
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
        answers: list[dict[str, Any]] = []
        for process in self._processes:
            assert process.stdout is not None
            waiting = _OTHER_RANK_S if any("failed" in answer for answer in answers) else _JOB_S
            answers.append(_read(process.stdout, waiting))
        # After a failure, or a refusal by some ranks only, the ranks may be out of step: the next model gets new ones.
        if any("failed" in answer for answer in answers) or len({"refused" in answer for answer in answers}) > 1:
            self.stop()
        return answers

    def stop(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        self._processes = []

    def _start(self) -> None:
        rendezvous = tempfile.mkdtemp(dir=self.logits.parent)
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", "conformance.tensor_parallel", *self._role(rank, rendezvous)],
                cwd=Path(__file__).parents[1],
                env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(self._world_size)
        ]
        for process in self._processes:
            assert process.stdout is not None
            if "failed" in (started := _read(process.stdout, _START_S)):
                self.stop()
                raise SystemExit(f"the ranks do not start: {started['failed']}")

    def _role(self, rank: int, rendezvous: str) -> list[str]:
        return ["--rank", str(rank), str(self._world_size), rendezvous, str(self.logits)]


def _read(stream: IO[str], timeout_s: float) -> dict[str, Any]:
    """One line of JSON, or `failed` with the reason."""
    if not select.select([stream], [], [], timeout_s)[0]:
        return {"failed": f"no answer within {timeout_s:.0f} s"}
    line = stream.readline()
    return json.loads(line) if line else {"failed": "a rank ended"}


def check(model_type: str, folder: Path, ranks: Ranks) -> Outcome:
    """Compares the split model of a type with the whole one."""
    from transformers import AutoModelForCausalLM

    try:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(tiny_config(model_type)).eval()
        randomise(model)
        model.save_pretrained(folder)
        del model
        whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        expected = logits_of(whole)
        saved = {tensor.data_ptr(): tensor.nbytes for tensor in whole.state_dict().values()}
        whole_bytes = sum(saved.values())
    except Exception as error:
        return Outcome(model_type, "refused", f"does not run in one process: {one_line(error, typed=True)}")
    ranks.logits.unlink(missing_ok=True)
    answers = ranks.run({"folder": str(folder), "attention": whole.config._attn_implementation})
    if failed := next((answer["failed"] for answer in answers if "failed" in answer), None):
        return Outcome(model_type, "WRONG", failed)
    if refused := [answer["refused"] for answer in answers if "refused" in answer]:
        return Outcome(model_type, "refused" if len(refused) == len(answers) else "WRONG", refused[0])
    if wrong := _difference(expected, torch.load(ranks.logits)):
        return Outcome(model_type, "WRONG", wrong)
    share = max(answer["weight_bytes"] for answer in answers) / whole_bytes
    return Outcome(model_type, "exact", "; ".join([f"{share:.0%}", *answers[0]["notes"]]))


def _difference(expected: list[torch.Tensor], got: list[torch.Tensor]) -> str | None:
    """Describes the first difference of the logits; None when they are equal."""
    for one, other in zip(expected, got, strict=True):
        if one.shape != other.shape or not torch.isfinite(other).all():
            return f"logits of {list(other.shape)}, not {list(one.shape)}, or not finite"
        difference = float((one - other).abs().max() / one.abs().max())
        if difference >= _TOLERANCE or not torch.equal(one.argmax(-1), other.argmax(-1)):
            return f"logits differ by {difference:.1e}"
    return None


def run_rank(rank: int, world_size: int, rendezvous: str, output: Path) -> None:
    """Loads and runs this rank's part of each model that stdin names."""
    import torch.distributed as dist
    from gridwork_server.errors import ModelError
    from gridwork_server.parallel.group import RankGroup
    from gridwork_server.parallel.loading import load_part
    from transformers import AutoConfig, AutoModelForCausalLM

    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print to stderr, and only answers reach stdout

    def answer(**content: Any) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    dist.init_process_group("gloo", init_method=f"file://{rendezvous}/meet", rank=rank, world_size=world_size)
    group = RankGroup(rank, world_size)
    answer()
    for line in sys.stdin:
        job = json.loads(line)
        try:
            config = AutoConfig.from_pretrained(job["folder"])
            found: Any = AutoModelForCausalLM._model_mapping[type(config)]
            model_class = found[0] if isinstance(found, tuple) else found
            part = load_part(model_class, config, Path(job["folder"]), torch.float32, group, job["attention"])
            logits = logits_of(part.model.eval())
            if rank == 0:
                torch.save(logits, output)
        except ModelError as error:
            answer(refused=str(error))
        except Exception as error:
            import traceback

            place = traceback.extract_tb(error.__traceback__)[-1]
            answer(failed=f"{one_line(error, typed=True)} ({Path(place.filename).name}:{place.lineno})")
        else:
            answer(weight_bytes=part.weight_bytes, notes=part.notes)


def main() -> int:
    """Checks the types, or runs one rank; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("types", nargs="*", help="model types; default: all with a plan")
    parser.add_argument("--world-size", type=int, default=2, help="number of ranks")
    parser.add_argument("--json", type=Path, help="file for the outcomes")
    parser.add_argument("--rank", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.filterwarnings("ignore")
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if arguments.rank:
        rank, world_size, rendezvous, output = arguments.rank
        run_rank(int(rank), int(world_size), rendezvous, Path(output))
        sys.stderr.flush()
        os._exit(0)  # threads of the open process group may abort the interpreter's exit
    outcomes = []
    with tempfile.TemporaryDirectory() as folder:
        ranks = Ranks(arguments.world_size, Path(folder))
        try:
            for model_type in arguments.types or types_with_a_plan():
                outcomes.append(check(model_type, Path(tempfile.mkdtemp(dir=folder)), ranks))
                print(outcomes[-1], flush=True)
        finally:
            ranks.stop()
    verdicts = [outcome.verdict for outcome in outcomes]
    print({verdict: verdicts.count(verdict) for verdict in ("exact", "refused", "WRONG")})
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1) + "\n")
    return 1 if "WRONG" in verdicts else 0


if __name__ == "__main__":
    sys.exit(main())
