"""Tests what a start imports, and that deferred imports behave like real ones. Each test runs in a process of its own,
since this one has imported everything."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gridwork_server.startup import import_structure

from .. import models

_LOAD = """
import json, sys
from pathlib import Path
from gridwork_server.config import ShardConfig
from gridwork_server.service.worker import Worker, _lean_imports
worker = Worker(ShardConfig(model_path=Path(sys.argv[1]), socket=""), None)
with _lean_imports(worker._config):
    worker._load()
"""

_HEAVY = (
    *("torch._dynamo", "torch._inductor", "torch._meta_registrations", "torch.distributed.tensor", "torch.export"),
    *("torch.distributed.fsdp", "torch.distributed.checkpoint", "torch.onnx", "accelerate", "sympy", "triton"),
    *("cuda.bindings", "torchvision", "sklearn", "scipy", "pandas"),
)


def run(program: str, *arguments: object) -> Any:
    """Runs a program; returns the JSON value that it prints last."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save("llama", tmp_path_factory.mktemp("models") / "llama")


def test_a_model_on_one_rank_imports_neither_compiler_nor_distributed_tensors(folder: Path) -> None:
    program = _LOAD + "print(json.dumps([worker.runner.path.name, sorted(sys.modules)]))"
    path, imported = run(program, folder)
    assert path == "paged"
    assert set(_HEAVY) & set(imported) == set()


def test_every_promise_resolves(folder: Path) -> None:
    program = (
        _LOAD
        + """
from gridwork_server.startup.deferred_imports import Promise
promises = {
    (name, key): value
    for name, module in list(sys.modules.items())
    for key, value in list(getattr(module, "__dict__", {}).items())
    if type(value) is Promise
}
kept = [promise.resolve() for promise in promises.values()]
print(json.dumps([len(promises), sum(type(each) is Promise for each in kept)]))
"""
    )
    made, left = run(program, folder)
    assert made > 20
    assert left == 0


def test_deferred_names_behave_like_the_real_ones(folder: Path) -> None:
    program = (
        _LOAD
        + """
import torch
from transformers import modeling_utils
from transformers.distributed import sharding_utils
from gridwork_server.startup.deferred_imports import Promise
results = [type(sharding_utils.DTensor) is Promise, isinstance(torch.ones(1), sharding_utils.DTensor)]
import torch.distributed.tensor
results += [sharding_utils.DTensor.__name__, sharding_utils.DTensor is torch.distributed.tensor.DTensor]
results += [issubclass(torch.distributed.tensor.DTensor, torch.Tensor)]
results += [torch.compile(lambda x: x * 2, backend="eager")(torch.ones(1)).item()]
results += ["torch._meta_registrations" in sys.modules]
print(json.dumps(results))
"""
    )
    assert run(program, folder) == [True, False, "DTensor", True, True, 2.0, True]


def test_torch_refs_are_imported_on_demand() -> None:
    program = """
import json, sys
from gridwork_server.startup import deferred_imports
with deferred_imports.deferring(deferred_imports.ON_ONE_RANK):
    import torch
    before = "torch._refs" in sys.modules
    shape = torch.broadcast_shapes((2, 1), (1, 3))
print(json.dumps([before, list(shape), "torch._refs" in sys.modules]))
"""
    assert run(program) == [False, [2, 3], True]


def test_uninstalled_packages_stay_missing() -> None:
    program = """
import json
from gridwork_server.startup.deferred_imports import deferring
with deferring(["no_such_package"]):
    try:
        import no_such_package.part
    except ImportError as error:
        print(json.dumps(str(error)))
"""
    assert run(program) == "No module named 'no_such_package'"


def test_cached_structure_equals_transformers_own() -> None:
    program = """
import json
from contextlib import nullcontext
from gridwork_server.startup.import_structure import cached_structure
with {context}():
    import transformers
    from transformers.utils import import_utils
structure = import_utils.define_import_structure(transformers.__path__[0] + "/models/__init__.py", prefix="models")
found = sorted([sorted(key), sorted((name, sorted(names)) for name, names in value.items())]
               for key, value in structure.items())
print(json.dumps([import_utils.define_import_structure.__module__, found, len(dir(transformers))]))
"""
    assert import_structure.CACHE_FILE.exists(), "make python"
    noted = run(program.replace("{context}", "cached_structure"))
    plain = run(program.replace("{context}", "nullcontext"))
    assert noted[0] == "gridwork_server.startup.import_structure"
    assert plain[0] == "transformers.utils.import_utils"
    assert noted[1:] == plain[1:]


def test_the_self_check_draws_noise() -> None:
    program = """
import json
from gridwork_server.startup import deferred_imports
with deferred_imports.deferring(deferred_imports.ON_ONE_RANK + deferred_imports.ON_CPU):
    import torch
    from gridwork_server.paths import rounding_check
    model, x = torch.nn.Linear(8, 8), torch.ones(1, 8)
    plain = model(x)
    with rounding_check._with_noise(model, torch.bfloat16):
        noisy = model(x)
print(json.dumps(float((noisy - plain).abs().max())))
"""
    assert 0 < run(program) < 0.1
