import pytest
from suite.contestants import peer_dtype
from suite.families import FAMILIES
from suite.models import MODELS
from suite.plan import UnknownName, choose, wanted_tokens
from suite.workloads import WORKLOADS


def test_the_default_plan_has_all_workloads_and_models_without_peers() -> None:
    plan = choose("", "", "", "", "")
    assert [workload.name for workload in plan.workloads] == [name for name in WORKLOADS if name != "families"]
    assert [model.name for model in plan.models] == ["smollm2-135m", "llama-1.2b", "moe-1.3b"]
    families = choose("", "families", "", "", "")
    assert "qwen3-5" in [model.name for model in families.models] and len(families.models) == len(FAMILIES)
    assert len(plan.models) == 3 and plan.rounds == 3 and plan.peers == ()
    assert plan.contestants(WORKLOADS["chat"]) == ["gridwork"]
    assert [workload.name for workload in plan.of(MODELS["moe-1.3b"])] == ["chat", "decode"]


def test_parts_of_a_run_are_chosen_by_name_with_spaces_or_commas() -> None:
    plan = choose("vllm,generate", "chat start", "smollm2-135m", "2", "1 32")
    assert plan.peers == ("vllm", "generate")
    assert [(workload.name, workload.levels) for workload in plan.workloads] == [("chat", (1, 32)), ("start", (1,))]
    assert [model.name for model in plan.models] == ["smollm2-135m"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("vlm", "", "", "", ""), "PEERS: there is no 'vlm'; there are: vllm vllm-transformers vllm-native "),
        (("", "chats", "", "", ""), "WORKLOADS: there is no 'chats'; there are: start chat "),
        (("", "", "gpt2", "", ""), "MODELS: there is no 'gpt2'; there are: smollm2-135m llama-1.2b moe-1.3b"),
        (("", "", "", "0", ""), "ROUNDS: '0' is not a whole number of at least 1"),
        (("", "", "", "", "1 many"), "CLIENTS: 'many' is not a whole number of at least 1"),
    ],
)
def test_an_unknown_name_is_refused_with_the_known_ones(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(UnknownName) as refused:
        choose(*arguments)
    assert str(refused.value).startswith(message)


def test_each_workload_has_its_contestants_in_turn() -> None:
    plan = choose("vllm transformers-serve generate", "", "", "", "")
    servers = ["gridwork", "vllm-transformers", "vllm-native", "transformers-serve"]
    assert plan.contestants(WORKLOADS["chat"]) == servers
    assert plan.contestants(WORKLOADS["multi-turn"]) == ["gridwork", "gridwork-no-prefix-cache", *servers[1:]]
    assert plan.contestants(WORKLOADS["offline"]) == [*servers, "generate"]
    assert plan.contestants(WORKLOADS["decode"]) == ["gridwork", "gridwork-int8", "gridwork-speculate"]
    assert plan.contestants(WORKLOADS["context"]) == ["gridwork"]


def test_one_implementation_of_vllm_can_be_chosen_and_none_runs_twice() -> None:
    chat = WORKLOADS["chat"]
    assert choose("vllm-native", "", "", "", "").contestants(chat) == ["gridwork", "vllm-native"]
    both = choose("vllm-native vllm", "", "", "", "").contestants(chat)
    assert both == ["gridwork", "vllm-native", "vllm-transformers"]


def test_peers_run_in_float32_where_bfloat16_is_emulated() -> None:
    assert peer_dtype(("avx2",)) == "float32"
    assert peer_dtype(("avx2", "avx512f", "avx512_bf16")) == "bfloat16"


def test_more_rounds_and_peers_take_longer() -> None:
    alone = choose("", "chat", "smollm2-135m", "1", "1").estimate_s()
    assert choose("", "chat", "smollm2-135m", "2", "1").estimate_s() == pytest.approx(2 * alone)
    assert choose("vllm", "chat", "smollm2-135m", "1", "1").estimate_s() > 3 * alone


def test_slow_models_get_fewer_requests_but_one_a_client() -> None:
    for workload in WORKLOADS.values():
        for level in workload.levels:
            whole, part = workload.make(level, 1.0), workload.make(level, 0.25)
            assert wanted_tokens(part) <= wanted_tokens(whole)
            if workload.name not in ("start", "context", "offline"):
                assert len(part) >= min(level, len(whole))


def test_only_peers_that_follow_schemas_are_measured_with_them() -> None:
    plan = choose("vllm transformers-serve generate", "", "", "", "")
    assert plan.contestants(WORKLOADS["structured"]) == ["gridwork", "vllm-transformers", "vllm-native"]


def test_answers_beside_constrained_ones_are_counted_alone() -> None:
    turns = [turn for (turn,) in WORKLOADS["structured-beside"].make(64, 1.0)]
    assert len(turns) == 64 and [turn.is_counted for turn in turns] == [not turn.schema for turn in turns]
    assert sum(turn.is_counted for turn in turns) == 32


def test_new_schemas_are_new_each_time() -> None:
    made = [turn.schema for _ in range(2) for (turn,) in WORKLOADS["new-schema"].make(1, 1.0)]
    assert len(set(made)) == len(made)
