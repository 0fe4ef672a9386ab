from suite.prompts import chat_prompts, text_of
from suite.workloads import WORKLOADS


def test_prompts_are_the_same_every_time() -> None:
    assert chat_prompts(16, seed=3) == chat_prompts(16, seed=3)
    assert text_of(500, seed=3) == text_of(500, seed=3)
    for workload in WORKLOADS.values():
        first, second = workload.make(8, 1.0), workload.make(8, 1.0)
        if workload.name == "new-schema":
            # Nothing that a server has compiled before may be of use.
            assert not {turn.schema for (turn,) in first} & {turn.schema for (turn,) in second}
            continue
        assert first == second, workload.name


def test_all_prompts_begin_differently() -> None:
    beginnings = [
        conversation[0].text[:24] for clients in (1, 8, 32, 64) for conversation in WORKLOADS["chat"].make(clients, 1.0)
    ]
    assert len(set(beginnings)) == len(beginnings)


def test_users_of_a_shared_prompt_share_it() -> None:
    texts = [conversation[0].text for conversation in WORKLOADS["shared-prompt"].make(8, 1.0)]
    assert len({text[:3000] for text in texts}) == 1 and len(set(texts)) == len(texts)


def test_a_text_has_about_the_requested_length() -> None:
    assert 1900 * 4.6 < len(text_of(2000, seed=1)) < 2100 * 4.6
