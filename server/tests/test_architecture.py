"""Imports of the Python packages go downwards: between the packages of the shard, and without a circle of modules."""

from collections import defaultdict
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter

import grimp
import pytest
from grimp import ImportGraph

# Packages and modules of gridwork_server from top to bottom. Those in one row do not import each other.
LAYERS = [
    {"__main__"},
    {"cli"},
    {"service"},
    {"step", "encoder"},
    {"model"},
    {"paths"},
    {"graph", "parallel"},
    {"prepare"},
    {"lengths", "checkpoint", "sampling", "startup"},
    {"attention", "config", "logs", "tracing"},
    {"recurrent"},
    {"errors", "text", "_proto"},
]


@pytest.fixture(scope="module", params=["gridwork_server", "gridwork_kernels"])
def graph(request: pytest.FixtureRequest) -> ImportGraph:
    return grimp.build_graph(request.param, cache_dir=None)


def imports(graph: ImportGraph) -> Iterator[tuple[str, str]]:
    """Pairs of importing and imported module, also those inside functions and under TYPE_CHECKING."""
    for importer in graph.modules:
        for imported in graph.find_modules_directly_imported_by(importer):
            yield importer, imported


def circle(edges: set[tuple[str, str]]) -> list[str]:
    """The modules of a circle among `edges`; empty if there is none."""
    sorter: TopologicalSorter[str] = TopologicalSorter()
    for importer, imported in edges:
        sorter.add(importer, imported)
    try:
        sorter.prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_modules_import_each_other_in_no_circle(graph: ImportGraph) -> None:
    related = {(a, b) for a, b in imports(graph) if a.startswith(f"{b}.") or b.startswith(f"{a}.")}
    assert circle(set(imports(graph)) - related) == []


def test_packages_import_each_other_in_no_circle(graph: ImportGraph) -> None:
    levels: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for importer, imported in imports(graph):
        a, b = importer.split("."), imported.split(".")
        shared = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        if shared < min(len(a), len(b)):
            levels[".".join(a[:shared])].add((a[shared], b[shared]))
    assert {parent: found for parent, edges in levels.items() if (found := circle(edges))} == {}


def test_the_shard_imports_downwards_only() -> None:
    graph = grimp.build_graph("gridwork_server", cache_dir=None)
    rank = {name: row for row, names in enumerate(LAYERS) for name in names}
    upwards = []
    for importer, imported in imports(graph):
        if "." not in importer or "." not in imported:
            continue
        a, b = importer.split(".")[1], imported.split(".")[1]
        assert a in rank and b in rank, f"{a} or {b} is in no layer: add it to LAYERS"
        if a != b and rank[a] >= rank[b]:
            upwards.append(f"{importer} -> {imported}")
    assert upwards == []
