"""Part 7: a model that is split over two ranks on one device, against Transformers on the CPU.

NCCL takes one rank a GPU, so that the ranks meet by gloo.
"""

import tempfile
from pathlib import Path

import tests.models as models
from tests.parallel.test_tensor_parallel import CASES, COUNT, PROMPTS, run_jobs

from gpu_check.part.context import Context

_MODELS = ("llama", "gemma3", "qwen3", "experts", "latent attention", "sinks")
_TINY = ("llama",)


def run(context: Context) -> None:
    """Runs all models in one pair of processes, since these take longer to start than to run."""
    names = _TINY if context.tiny else _MODELS
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name in names:
            architecture, changes = CASES[name]
            models.save(architecture, folder / name, **changes)
        job = {"dtype": "float32", "device": context.device.type, "prompts": PROMPTS, "count": COUNT}
        first, _second = run_jobs(folder, [job | {"folder": str(folder / name)} for name in names])
        for name, result in zip(names, first, strict=True):
            if "error" in result:
                context.check(name, result["error"])
                continue
            model = models.plain(folder / name)
            expected = [models.greedy(model, prompt, COUNT) for prompt in PROMPTS]
            problem = "" if result["tokens"] == expected else f"{result['tokens']} is not {expected}"
            context.check(f"{name}: two ranks give the tokens of generate()", problem, f"{len(PROMPTS)} prompts")
