"""Load: prompts, arrivals, flags, and how requests are sent."""

import argparse
import itertools
import json
import statistics
from pathlib import Path

import pytest

from gridwork import InvalidRequest
from gridwork.bench import arrivals, prompts
from gridwork.bench.load import Target
from gridwork.bench.prompts import Lengths, Prompt, Scale
from gridwork.client import Address
from gridwork.tools import bench


def first(count: int, shared: int = 0, seed: int = 1) -> list[list[str]]:
    made = prompts.synthetic(Lengths(20, 60), shared, Scale(), seed)
    return [(prompt.text or "").split() for prompt in itertools.islice(made, count)]


def common(left: list[str], right: list[str]) -> int:
    return next(
        (at for at, pair in enumerate(zip(left, right, strict=False)) if pair[0] != pair[1]), min(len(left), len(right))
    )


def test_synthetic_prompts_have_their_length_and_share_the_wanted_prefix_alone() -> None:
    for shared in (0, 8):
        made = first(500, shared)
        lengths = [len(each) for each in made]
        assert min(lengths) >= 20 and max(lengths) <= 60 and len(set(lengths)) > 30
        longest = max(common(*pair) for pair in itertools.combinations(made, 2))
        assert shared <= longest <= shared + 1
        assert len({tuple(each[:shared]) for each in made}) == 1


def test_the_same_seed_gives_the_same_load() -> None:
    assert first(20) == first(20) != first(20, seed=2)
    gaps = [list(itertools.islice(arrivals.poisson(5.0, seed), 2000)) for seed in (1, 1, 2)]
    assert gaps[0] == gaps[1] != gaps[2]
    spent = [after - before for before, after in itertools.pairwise([0.0, *gaps[0]])]
    # Gaps of a Poisson process have a standard deviation of their mean.
    assert statistics.fmean(spent) == pytest.approx(0.2, rel=0.1)
    assert statistics.stdev(spent) == pytest.approx(0.2, rel=0.1)


def test_words_become_tokens_by_the_scale_of_the_server() -> None:
    assert Scale(fixed=30, tokens_per_word=1.5).num_words(180) == 100
    assert Scale(fixed=30).num_words(10) == 1


def test_files_have_prompts_in_three_forms(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    assert prompts.of_file(tmp_path / "a.txt") == [Prompt(text="one"), Prompt(text="two")]
    shared = {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]}
    openai = {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]}
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, [shared, openai, {"prompt": "p"}, "q"])))
    (tmp_path / "a.json").write_text(json.dumps([shared, openai, {"prompt": "p"}, "q"]))
    found = prompts.of_file(tmp_path / "a.jsonl")
    assert found == prompts.of_file(tmp_path / "a.json")
    assert found[0].as_messages() == [{"role": "user", "content": "hi"}] and found[0].as_text() == "hi"
    assert found[1].as_messages() == openai["messages"] and found[1].as_text() == "s\n\nu"
    assert [prompt.text for prompt in found[2:]] == ["p", "q"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no prompt"),
        ("{", "line 1 is not JSON"),
        ('"a"\n{"texts": 1}', "line 2"),
        ('{"messages": [{"role": "assistant", "content": "x"}]}', "no message of a user"),
        ('{"messages": [{"role": "user"}]}', "`content`"),
    ],
)
def test_a_wrong_file_names_the_flag_and_the_place(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(InvalidRequest, match="--prompts") as error:
        prompts.of_file(tmp_path / "a.jsonl")
    assert words in str(error.value)


def test_a_request_has_the_form_of_its_api() -> None:
    prompt = Prompt(text="hi")
    chat = json.loads(Target(Address("http://x"), "m", "chat").body(prompt, 5))
    plain = json.loads(Target(Address("http://x"), "m", "completions", {"ignore_eos": True}).body(prompt, 5))
    both = {"model": "m", "max_tokens": 5, "temperature": 0, "stream": True, "stream_options": {"include_usage": True}}
    assert chat == both | {"messages": [{"role": "user", "content": "hi"}]}
    assert plain == both | {"prompt": "hi", "ignore_eos": True}


def plan(*words: str) -> bench.Plan:
    parser = argparse.ArgumentParser()
    bench.register(parser.add_subparsers())
    args, args.flags = parser.parse_known_args(["bench", *words])
    return bench.read_plan(args)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--concurrency", "0"), "--concurrency"),
        (("--rate", "5", "--concurrency", "0"), "--concurrency"),
        (("--rate", "5", "--concurrency", "4"), "--rate"),
        (("--rate", "0"), "--rate"),
        (("--rate", "nan"), "--rate"),
        (("--duration", "-1"), "--duration"),
        (("--num-requests", "0"), "--num-requests"),
        (("--warmup", "-1"), "--warmup"),
        (("--input-tokens", "9:3"), "--input-tokens"),
        (("--output-tokens", "many"), "--output-tokens"),
        (("--input-tokens", "8", "--shared-prefix-tokens", "8"), "--shared-prefix-tokens"),
        (("--prompts", "/none"), "--prompts"),
        (("--prompts", "/none", "--input-tokens", "8"), "--input-tokens"),
        (("--slo", "ttft<5"), "--slo"),
        (("--dtype", "float32"), "--dtype"),
    ],
)
def test_a_wrong_flag_is_named_before_any_load(flags: tuple[str, ...], named: str) -> None:
    with pytest.raises(InvalidRequest, match=named):
        plan("http://127.0.0.1:9", *flags)


def test_the_end_of_a_load_is_a_number_a_time_or_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    (tmp_path / "a.jsonl").write_text('{"messages": [{"role": "user", "content": "u"}]}')
    assert plan("m").num_requests == 200 and plan("m").api == "completions" and plan("m").ignores_eos
    assert plan("m", "--duration", "3").num_requests is None
    assert plan("m", "--prompts", str(tmp_path / "a.txt")).num_requests == 2
    conversations = plan("m", "--prompts", str(tmp_path / "a.jsonl"), "--rate", "2")
    assert conversations.api == "chat" and not conversations.ignores_eos and conversations.concurrency is None
    assert plan("m", "--seed", "5").seed == 5 and plan("m").seed != plan("m").seed
