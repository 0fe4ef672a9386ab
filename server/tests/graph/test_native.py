"""Native programs against the same operations called one by one."""

from functools import cached_property
from itertools import combinations
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gridwork_kernels import cpu_attention, cpu_library
from gridwork_kernels.program import OPERATIONS, Measurement
from gridwork_server.graph.fuse import replace_scales
from gridwork_server.graph.native import NativeProgram, _Place
from gridwork_server.graph.nodes import Graph, Node, Ref, Size
from gridwork_server.graph.plan import Plan, Segment, features_of
from gridwork_server.graph.program import Program
from gridwork_server.graph.recorded_model import RecordedModel

from .. import models
from .test_recorded_models import all_logits, loaded

pytestmark = pytest.mark.skipif(not cpu_attention.supports(torch.float32), reason="no compiled kernels for this CPU")

aten = torch.ops.aten


def program_of(path: object) -> Program:
    recorded = path._recorded  # type: ignore[attr-defined]
    assert isinstance(recorded, RecordedModel)
    return recorded._for_all_rows


@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", models.ARCHITECTURES)
def test_programs_equal_single_operations_bit_for_bit(
    name: str, dtype: str, quantize: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if quantize and (name not in ("llama", "qwen2") or dtype == "float16"):
        pytest.skip("the same layers as others'")
    # A model whose gates and factors are whole panels, with biases.
    sizes = {"hidden_size": 96, "intermediate_size": 64, "mlp_bias": True} if name == "llama" else {}
    if quantize:
        sizes = {"hidden_size": 96, "intermediate_size": 128}
    folder = models.save(name, tmp_path, **sizes)
    _randomize_biases(folder)
    native = loaded(folder, dtype, quantize=quantize)
    with monkeypatch.context() as patch:
        patch.setattr("gridwork_server.graph.program.Plan", _without_segments)
        single = loaded(folder, dtype, quantize=quantize)
    assert native.is_recorded and single.is_recorded
    assert program_of(native).num_calls < program_of(single).num_calls
    many = [250, 200, 150]
    for lengths in ([1], [40, 3, 1], many):
        assert torch.equal(all_logits(native, lengths), all_logits(single, lengths)), lengths
    # Three threads cut other blocks than one thread, on any processor.
    cpu_library.set_num_threads(3)
    try:
        assert torch.equal(all_logits(native, many), all_logits(single, many))
    finally:
        cpu_library.set_num_threads(1)


@pytest.mark.parametrize("hidden_size", [2048, 4096])
def test_wide_layers_are_the_same_in_blocks_of_tokens(
    hidden_size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 32, "intermediate_size": 320}
    folder = models.save("llama", tmp_path, hidden_size=hidden_size, num_hidden_layers=1, **sizes)
    native = loaded(folder, "bfloat16")
    monkeypatch.setattr("gridwork_server.graph.program.Plan", _without_segments)
    single = loaded(folder, "bfloat16")
    assert torch.equal(all_logits(native, [180, 150]), all_logits(single, [180, 150]))


def _randomize_biases(folder: Path) -> None:
    """Replaces the zeros that Transformers initialises biases with, which would hide missing biases."""
    file = folder / "model.safetensors"
    weights = {name: torch.randn_like(w) if name.endswith("bias") else w for name, w in load_file(file).items()}
    save_file(weights, file, {"format": "pt"})


def _without_segments(graph: Graph) -> Plan:
    plan = Plan(Graph(graph.input_ids, graph.position_ids, graph.kept, [], graph.result))
    plan.items[:] = graph.nodes
    return plan


@pytest.mark.parametrize("name", ["gpt2", "phi3", "phi"])
def test_partial_rotation_and_layer_norms_are_one_call(name: str, tmp_path: Path) -> None:
    # With fewer features than a panel of packed weights, keys and values would stay PyTorch's layers.
    path = loaded(models.save(name, tmp_path, hidden_size=128))
    assert program_of(path).num_calls == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["granite", "gemma3", "exaone4", "gpt_neox", "olmo2", "glm4", "cohere"])
def test_scales_head_norms_and_other_rotations_are_one_call(name: str, dtype: str, tmp_path: Path) -> None:
    sizes = {"hidden_size": 128, "intermediate_size": 128, "num_attention_heads": 4}
    path = loaded(models.save(name, tmp_path, **sizes), dtype)
    assert program_of(path).num_calls == 1
    rotate = [len(node.args) == 6 for node in attentions(path)]
    assert rotate == [True, name != "exaone4", True], "EXAONE's layers without a window do not rotate"


def attentions(path: object) -> list[Node]:
    segments = [native._segment for native in program_of(path)._native]
    return [node for segment in segments for node in segment.nodes if node.name == "attend"]


def test_opt_layers_are_one_call(tmp_path: Path) -> None:
    sizes = {"hidden_size": 128, "word_embed_proj_dim": 128, "ffn_dim": 128, "num_attention_heads": 4}
    path = loaded(models.save("opt", tmp_path, **sizes), "bfloat16")
    assert program_of(path).num_calls == 3, "also positions, which begin at 2, and their embedding"


def test_transposed_weights_are_linear_layers(tmp_path: Path) -> None:
    path = loaded(models.save("gpt2", tmp_path))
    with Measurement() as measured:
        all_logits(path, [5])  # a prompt and a decode
    layers, steps = 3, 2
    calls = {name: count for name, count in zip(OPERATIONS, measured.calls, strict=True) if count}
    assert calls["paged_attention"] == calls["activation"] == layers * steps
    assert calls["linear"] == (4 * layers + 1) * steps and calls["add_norm"] == (2 * layers + 1) * steps


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_all_layers_are_one_call(name: str, tmp_path: Path) -> None:
    path = loaded(models.save(name, tmp_path, intermediate_size=128))
    assert program_of(path).num_calls < 25
    with Measurement() as measured:
        all_logits(path, [5])  # a prompt and a decode
    layers, steps = 3, 2
    calls = {name: count for name, count in zip(OPERATIONS, measured.calls, strict=True) if count}
    assert calls["paged_attention"] == calls["gated_linear"] == layers * steps
    assert calls["add_norm"] == 2 * layers * steps and "gated_activation" not in calls
    assert measured.seconds.sum() > 0


@pytest.mark.parametrize("sizes", [(96, 64), (96, 96), (96, 192), (192, 128)], ids=str)
def test_no_operation_overwrites_its_inputs(sizes: tuple[int, int], tmp_path: Path) -> None:
    hidden, intermediate = sizes
    path = loaded(models.save("llama", tmp_path, hidden_size=hidden, intermediate_size=intermediate))
    joined = 0
    for native in program_of(path)._native:
        for nodes in native._operations:
            joined += len(nodes) == 2
            assert not _overlaps(native, [nodes])
    assert joined


@pytest.mark.parametrize("sizes", [(96, 64), (96, 192)], ids=str)
def test_persistent_memory_is_not_overwritten_within_a_section(sizes: tuple[int, int], tmp_path: Path) -> None:
    hidden, intermediate = sizes
    path = loaded(models.save("llama", tmp_path, hidden_size=hidden, intermediate_size=intermediate))
    for native in program_of(path)._native:
        places = native._places
        assert {place.is_persistent for place in places} == {True, False}
        for section in native._sections:
            assert not [pair for pair in _overlaps(native, section) if pair[0].is_persistent]


def _overlaps(native: NativeProgram, operations: list[tuple[Node, ...]]) -> list[tuple[_Place, _Place]]:
    """Pairs of the program's own tensors that these operations write or read and that overlap in memory."""
    nodes = [node for together in operations for node in together]
    refs = {native._plan.base(ref) for node in nodes for ref in (*node.inputs(), *node.outputs) if ref is not None}
    own = {}
    for ref in refs:
        if (slot := native._slots[ref] - len(native._external)) >= 0:
            size = features_of(native._plan.shapes[ref]) * native._plan.dtypes[ref].itemsize
            place = native._places[slot]
            own[place, ref] = range(place.begin, place.begin + size)
    return [
        (one, other)
        for ((one, _), bytes_of_one), ((other, _), bytes_of_other) in combinations(own.items(), 2)
        if one.is_persistent == other.is_persistent and set(bytes_of_one) & set(bytes_of_other)
    ]


T = Size(0, 1, 0)


class Builder:
    """A graph of additions, views and products on tensors `[1, T, 32]`."""

    def __init__(self) -> None:
        self.graph = Graph(Ref(0), Ref(1), Ref(2), [], Ref(0), next_index=3)
        self.table = torch.randn(50, 32)
        self.embedded = self.add(aten.embedding.default, self.table, self.graph.input_ids)

    @cached_property
    def start(self) -> Ref:
        """The output of an operation without a kernel."""
        return self.add(aten.neg.default, self.embedded)

    def add(self, target: object, *args: object, shape: tuple[object, ...] = (1, T, 32)) -> Ref:
        out = self.graph.new_ref()
        self.graph.nodes.append(Node(target, args, {}, (out,), shape, torch.float32))  # type: ignore[arg-type]
        self.graph.result = out
        return out

    def sums(self, first: Ref, second: Ref, count: int = 4) -> Ref:
        for _ in range(count):
            first = self.add(aten.add.Tensor, first, second)
        return first

    def run(self, ids: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor, Program]:
        """The graph's result with and without programs."""
        ids = torch.arange(7)[None] if ids is None else ids
        results = []
        for native in (True, False):
            program = Program(self.graph, {}, set(), set(), native)
            program.bind({}, {})
            layout = _layout()
            results.append(program.run(ids, ids, torch.arange(ids.shape[1]), layout, layout))
            if native:
                with_programs = program
        return results[0], results[1], with_programs


def _layout() -> object:
    from gridwork_kernels.paged_attention import PagedLayout

    none, long = torch.zeros(1, 1, dtype=torch.int32), torch.zeros(7, dtype=torch.int64)
    return PagedLayout(none, none[0], none[0], long, 16, [7], [7], 0)


def segments(graph: Graph) -> list[Segment]:
    return [item for item in Plan(graph).items if isinstance(item, Segment)]


def test_operations_between_segments_get_their_inputs() -> None:
    build = Builder()
    first = build.sums(build.start, build.start)
    other = build.add(aten.neg.default, build.start)  # needs nothing of the segment: executed before it
    second = build.sums(first, other)
    negated = build.add(aten.neg.default, second)  # ends the segment
    build.sums(negated, first)
    native, plain, program = build.run()
    assert torch.equal(native, plain)
    assert len(segments(build.graph)) == 2
    assert program.num_calls == 2 + 1 + 1 + 1 + 1


def test_views_of_rows_are_tensors_only_where_needed() -> None:
    build = Builder()
    total = build.sums(build.start, build.start)
    lower = build.add(aten.slice.Tensor, total, 2, 0, 16, shape=(1, T, 16))
    upper = build.add(aten.slice.Tensor, total, 2, 16, 32, shape=(1, T, 16))
    both = build.add(aten.add.Tensor, lower, upper, shape=(1, T, 16))
    negated = build.add(aten.neg.default, upper, shape=(1, T, 16))
    build.add(aten.add.Tensor, both, negated, shape=(1, T, 16))
    native, plain, _ = build.run()
    assert torch.equal(native, plain)
    (segment,) = segments(build.graph)
    assert len(segment.nodes) == 5 and segment.outputs == [total, both], "views are not operations"


def test_only_attention_reads_heads_with_a_stride() -> None:
    build = Builder()
    total = build.sums(build.start, build.start)
    heads = build.add(aten.view.default, total, [1, -1, 4, 8], shape=(1, T, 4, 8))
    lower = build.add(aten.slice.Tensor, heads, 3, 0, 4, shape=(1, T, 4, 4))
    upper = build.add(aten.slice.Tensor, heads, -1, 4, 8, shape=(1, T, 4, 4))
    two = build.add(aten.slice.Tensor, upper, 2, 1, 3, shape=(1, T, 2, 4))
    plan = Plan(build.graph)
    assert [(plan.rows[ref].offset, plan.rows[ref].part_stride) for ref in (lower, upper, two)] == [
        (0, 8),
        (4, 8),
        (12, 8),
    ]
    flat = build.add(aten.reshape.default, two, [1, -1, 8], shape=(1, T, 8))
    some = build.add(aten.slice.Tensor, lower, 2, 0, 2, shape=(1, T, 2, 4))
    both = two
    for _ in range(4):
        both = build.add(aten.add.Tensor, both, some, shape=(1, T, 2, 4))
    flat_both = build.add(aten.view.default, both, [1, -1, 8], shape=(1, T, 8))
    build.add(aten.add.Tensor, flat, flat_both, shape=(1, T, 8))
    native, plain, _ = build.run()
    assert torch.equal(native, plain)
    (segment,) = segments(build.graph)
    assert len(segment.nodes) == 4, "only the first sums"


def test_products_with_numbers_are_operations_of_programs() -> None:
    build = Builder()
    factor = torch.tensor(0.3)
    products = (aten.mul.Tensor, 0.22), (aten.div.Tensor, 3), (aten.mul.Tensor, factor)
    x = build.sums(build.start, build.start)
    for target, by in products:
        x = build.add(target, x, by)
    build.sums(build.add(aten.mul.Tensor, factor, x), x)
    _, plain, _ = build.run()
    replace_scales(build.graph)
    native, single, _ = build.run()
    assert torch.equal(native, plain) and torch.equal(single, plain)
    (segment,) = segments(build.graph)
    assert [node.name for node in segment.nodes].count("gridwork_cpu.scale") == 4


def test_other_products_are_not_scales() -> None:
    build = Builder()
    x = build.start
    build.add(aten.mul.Tensor, x, torch.tensor(0.3, dtype=torch.float64))
    build.add(aten.mul.Tensor, x, torch.rand(32))
    build.add(aten.mul.Tensor, x, x)
    build.add(aten.div.Tensor, torch.tensor(2.0), x)
    build.add(aten.mul.Tensor, x, True)
    before = [node.name for node in build.graph.nodes]
    replace_scales(build.graph)
    assert [node.name for node in build.graph.nodes] == before


@pytest.mark.parametrize("count", [1, 7, 3000])
def test_embeddings_are_looked_up(count: int) -> None:
    build = Builder()
    build.sums(build.embedded, build.embedded)
    ids = (13 * torch.arange(count) % 50)[None]
    native, plain, program = build.run(ids)
    assert torch.equal(native, plain) and torch.equal(native[0], 5 * build.table[ids[0]])
    assert program.num_calls == 1


def test_unknown_ids_give_nan_and_no_other_row_changes() -> None:
    build = Builder()
    build.sums(build.embedded, build.embedded)
    program = Program(build.graph, {}, set(), set())
    program.bind({}, {})
    ids = torch.tensor([[3, 50, 49, -1, 2**40]])
    result = program.run(ids, ids, torch.arange(5), _layout(), _layout())[0]  # type: ignore[arg-type]
    assert torch.equal(result[[0, 2]], 5 * build.table[[3, 49]])
    assert result[[1, 3, 4]].isnan().all()


def test_tensors_written_in_place_are_left_to_pytorch() -> None:
    build = Builder()
    total = build.sums(build.start, build.start)
    build.graph.nodes.append(Node(aten.add_.Tensor, (total, build.start), {}, (total,), (1, T, 32), torch.float32))
    build.sums(total, build.start)
    native, plain, _ = build.run()
    assert torch.equal(native, plain)
    used = {ref for segment in segments(build.graph) for node in segment.nodes for ref in node.outputs}
    assert total not in used
