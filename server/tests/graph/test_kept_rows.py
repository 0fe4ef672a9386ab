"""Steps with logits of some tokens against steps with logits of all tokens."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from gridwork_kernels import cpu_attention
from gridwork_server.graph.fuse import fuse
from gridwork_server.graph.kept_rows import by_kept_rows
from gridwork_server.graph.nodes import Graph, Node, Ref, Size
from gridwork_server.paths.paged import PagedPath

from .. import models
from .test_recorded_models import admitted, graph_of, loaded

pytestmark = pytest.mark.skipif(not cpu_attention.supports(torch.float32), reason="no compiled kernels for this CPU")

aten = torch.ops.aten
T, K = Size(0, 1, 0), Size(0, 0, 1)


def logits_of(path: PagedPath, lengths: list[int], wanted: np.ndarray) -> torch.Tensor:
    """Logits of these tokens of a step with prompts of these lengths."""
    table, ids = admitted(path, lengths)
    with torch.inference_mode():
        logits, kept = path.forward(table.batch(ids, np.array(lengths)), table, wanted)
    assert kept.tolist() == wanted.tolist()
    return logits.float()


@pytest.mark.parametrize("quantize", [None, "int8"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", models.ARCHITECTURES)
def test_logits_do_not_depend_on_the_other_requested_tokens(
    name: str, dtype: str, quantize: str | None, tmp_path: Path
) -> None:
    if quantize and name not in ("llama", "qwen2"):
        pytest.skip("the same layers as others'")
    sizes = {"hidden_size": 96, "intermediate_size": 128} if quantize else {}
    path = loaded(models.save(name, tmp_path, **sizes), dtype, quantize=quantize)
    assert path.is_recorded, path.notes
    for lengths in ([2], [40, 3, 1], [200, 90]):
        total = sum(lengths)
        all_of_them = logits_of(path, lengths, np.arange(total))
        for wanted in (np.cumsum(lengths) - 1, np.arange(total - 1), np.array([0])):
            assert torch.equal(logits_of(path, lengths, wanted), all_of_them[wanted]), (lengths, wanted)


def test_the_last_layer_computes_only_requested_rows(tmp_path: Path) -> None:
    graph = graph_of("llama", tmp_path)
    fuse(graph, lambda _old, _new: None)
    every, some = by_kept_rows(graph) or (None, None)
    assert every is not None and some is not None
    assert _count(every) == Counter({("gridwork_cpu.linear", T): 3 * 4 + 1})
    assert _count(some) == Counter({("gridwork_cpu.linear", T): 3 * 4 - 3, ("gridwork_cpu.linear", K): 4})
    assert [node.name for node in every.nodes].count("aten.index") == 0
    chosen = [node for node in some.nodes if node.target == aten.index_select.default]
    assert len(chosen) == 2, "the output of attention, and the residual"


def _count(graph: Graph) -> Counter[tuple[str, object]]:
    linears = (node for node in graph.nodes if node.name == "gridwork_cpu.linear")
    return Counter((node.name, node.shape[1]) for node in linears if node.shape is not None)


def test_tensors_with_other_users_are_computed_for_all_tokens() -> None:
    def node(target: object, args: tuple[object, ...], out: int, rows: Size = T) -> Node:
        return Node(target, args, {}, (Ref(out),), (1, rows, 8), torch.float32)

    choice = node(aten.index.Tensor, (Ref(6), [None, Ref(2)]), 7, K)
    nodes = [
        node(aten.embedding.default, (torch.zeros(4, 8), Ref(0)), 3),
        node(aten.tanh.default, (Ref(3),), 4),
        node(aten.flip.default, (Ref(4), [1]), 5),
        node(aten.add.Tensor, (Ref(4), Ref(5)), 6),
        choice,
        node(aten.tanh.default, (Ref(7),), 8, K),
    ]
    every, some = by_kept_rows(Graph(Ref(0), Ref(1), Ref(2), nodes, Ref(8), next_index=9)) or (None, None)
    assert every is not None and some is not None
    assert [n.name for n in every.nodes] == ["aten.embedding", "aten.tanh", "aten.flip", "aten.add", "aten.tanh"]
    assert every.nodes[-1].args == (Ref(6),) and every.nodes[-1].shape == (1, T, 8)
    names = [
        "aten.embedding",
        "aten.tanh",
        "aten.flip",
        "aten.index_select",
        "aten.index_select",
        "aten.add",
        "aten.tanh",
    ]
    assert [n.name for n in some.nodes] == names
    assert some.nodes[-2].args == (Ref(9), Ref(10)) and some.nodes[-2].shape == (1, K, 8)


def test_graphs_with_another_selection_stay() -> None:
    choice = Node(aten.index.Tensor, (Ref(3), [Ref(2)]), {}, (Ref(4),), (K, 8), torch.float32)
    start = Node(aten.embedding.default, (torch.zeros(4, 8), Ref(0)), {}, (Ref(3),), (T, 8), torch.float32)
    assert by_kept_rows(Graph(Ref(0), Ref(1), Ref(2), [start, choice], Ref(4), next_index=5)) is None
