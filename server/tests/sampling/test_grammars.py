"""Grammars of sequences, and the masks that they give."""

from concurrent.futures import Future

import numpy as np
import pytest
import torch

from gridwork_server._proto import shard_pb2 as pb
from gridwork_server.sampling import Grammars, TokenChecks, TokenMasks

from .. import models
from ..grammars import END, TEXTS, grammar, token_table, tokens
from .naive import Parameters
from .support import peaked_logits, sampler_for

CPU = torch.device("cpu")


def grammars(
    rules: list[str], end_ids: tuple[int, ...] = (END,), vocab_size: int = models.VOCAB, forced_up_to: int = 100
) -> Grammars:
    """Sequences from id 0 with these rules, each with a prompt of one token."""
    made = Grammars(token_table(end_ids), vocab_size, CPU, forced_up_to)
    for id, each in enumerate(rules):
        made.admit(id, grammar(each), [], 1)
    return made


def masks(made: Grammars, count: int, drafts: list[list[int]] | None = None) -> TokenMasks:
    ids = np.arange(count)
    if drafts is None:
        started = started_masks(made, ids)
    else:
        counts = np.array([len(each) + 1 for each in drafts])
        inputs = np.concatenate([np.array([0, *each], dtype=np.int64) for each in drafts])
        started, _ = made.start(ids, counts, inputs, np.zeros(count, dtype=bool), None)
    assert started is not None
    return started.result()


def started_masks(made: Grammars, ids: np.ndarray) -> "Future[TokenMasks] | None":
    """Masks of sequences that are drawn, one row each."""
    return made.start(ids, None, np.zeros(0, dtype=np.int64), np.zeros(len(ids), dtype=bool), None)[0]


def started_checks(made: Grammars, ids: np.ndarray) -> TokenChecks | None:
    """Checks of greedy sequences, one row each."""
    return made.start(ids, None, np.zeros(0, dtype=np.int64), np.ones(len(ids), dtype=bool), None)[1]


def allowed(found: TokenMasks, row: int, vocab_size: int = models.VOCAB) -> set[bytes]:
    """Texts of the tokens that a row may sample."""
    logits = torch.zeros(int(found.rows.max()) + 1, vocab_size)
    found.apply(logits)
    ids = torch.nonzero(torch.isfinite(logits[row]))[:, 0].tolist()
    return {TEXTS[id] for id in ids}


def test_masks_follow_the_text():
    made = grammars(['start: "ab" /[0-9]/', 'start: "x"*'])
    assert allowed(masks(made, 2), 0) == {b"a", b"ab"}
    assert allowed(masks(made, 2), 1) == {b"x", b"</s>"}
    made.feed(np.array([0, 1]), np.array([1, 1]), np.array(tokens("ax")))
    assert allowed(masks(made, 2), 0) == {b"b"}
    assert allowed(masks(made, 2), 1) == {b"x", b"</s>"}


def test_a_token_counts_once_for_each_position():
    made = grammars(['start: "aaa"'])
    for _ in range(3):
        made.feed(np.array([0]), np.array([1]), np.array(tokens("a")))
    assert allowed(masks(made, 1), 0) == {b"a", b"aa"}


def test_the_state_is_rebuilt_from_generated_tokens():
    made = grammars([])
    made.admit(5, grammar('start: "abc" | "abd"'), tokens("ab"), 9)
    started = started_masks(made, np.array([5]))
    assert started is not None
    assert allowed(started.result(), 0) == {b"c", b"d"}


def test_only_sequences_with_a_grammar_have_masks():
    made = grammars(['start: "a"'])
    assert started_masks(made, np.array([3, 4])) is None
    started = started_masks(made, np.array([3, 0, 4]))
    assert started is not None
    assert started.result().rows.tolist() == [1]
    made.release([0, 3])
    assert started_masks(made, np.array([0])) is None


def test_each_draft_has_the_mask_of_the_text_before_it():
    made = grammars(['start: "abc"', 'start: "x" "y"?', 'start: "q"'])
    found = masks(made, 3, [tokens("ab"), tokens("x"), []])
    assert found.rows.tolist() == [0, 1, 2, 3, 4, 5]
    texts = [allowed(found, row) for row in range(6)]
    assert texts == [{b"a", b"ab"}, {b"b", b"bc"} & set(TEXTS), {b"c"}, {b"x"}, {b"y", b"</s>"}, {b"q"}]
    assert found.behind_end.tolist() == []
    # The drafts were not taken.
    assert allowed(masks(made, 3), 0) == {b"a", b"ab"}


@pytest.mark.parametrize("end_ids", [(END,), ()])
def test_rows_behind_the_end_of_a_grammar_are_named(end_ids):
    made = grammars(['start: "ab"', 'start: "a"*'], end_ids)
    assert masks(made, 2, [tokens("ab"), tokens("aa")]).behind_end.tolist() == [2]


def test_a_wrong_or_impossible_draft_leaves_the_matching_intact():
    made = grammars(['start: "abc"'])
    found = masks(made, 1, [[*tokens("z"), models.VOCAB + 7]])
    assert allowed(found, 0) == {b"a", b"ab"}
    assert found.failures == {}
    assert allowed(masks(made, 1), 0) == {b"a", b"ab"}


def test_a_grammar_that_has_ended_is_reported_and_allows_the_end_alone():
    made = grammars(['start: "ab"', 'start: "a"+'])
    made.feed(np.array([0, 1]), np.array([1, 1]), np.array([TEXTS.index(b"ab"), TEXTS.index(b"a")]))
    result = pb.StepResult()
    made.report(result, np.array([0, 1]))
    assert list(result.ended) == [0]
    assert allowed(masks(made, 2), 0) == {b"</s>"}


def test_forced_tokens_are_reported():
    made = grammars(['start: "x" ("abc" /[0-9]/ | "z")'])
    result = pb.StepResult()
    made.report(result, np.array([0]))
    assert [TEXTS[token] for token in result.forced] == [b"x"]
    made.feed(np.array([0, 0]), np.array([1, 2]), np.array(tokens("xa")))
    result = pb.StepResult()
    made.report(result, np.array([0]))
    assert list(result.forced_sequence_ids) == [0]
    assert b"".join(TEXTS[token] for token in result.forced) == b"bc"
    assert allowed(masks(made, 1), 0) == {b"b", b"bc"}


def test_forced_tokens_of_steps_with_many_sequences_are_not_reported():
    made = grammars(['start: "x"'], forced_up_to=1)
    for ids, expected in ((np.array([0]), [0]), (np.array([0, 1]), [])):
        result = pb.StepResult()
        made.report(result, ids)
        assert list(result.forced_sequence_ids) == expected


def test_a_model_without_an_end_is_told_of_the_grammars_end():
    made = grammars(['start: "ab"?'], end_ids=())
    assert allowed(masks(made, 1), 0) == {b"a", b"ab"}
    made.feed(np.array([0]), np.array([1]), np.array([TEXTS.index(b"ab")]))
    result = pb.StepResult()
    made.report(result, np.array([0]))
    assert list(result.ended) == [0]


@pytest.mark.parametrize("vocab_size", [models.VOCAB, 160, 161, 100])
def test_logits_may_be_wider_or_narrower_than_the_tokens(vocab_size):
    made = grammars(["start: /(?s:.)*/"], vocab_size=vocab_size)
    logits = torch.zeros(1, vocab_size)
    masks(made, 1).apply(logits)
    has_text = [2 <= id < len(TEXTS) for id in range(vocab_size)]
    assert torch.isfinite(logits[0]).tolist() == has_text


def test_a_grammar_that_cannot_be_followed_fails_alone():
    made = grammars(["start: nowhere", 'start: "a"'])
    found = masks(made, 2)
    assert list(found.failures) == [0]
    assert "grammar" in found.failures[0]
    assert allowed(found, 1) == {b"a"}


def test_rows_of_other_sequences_are_unchanged():
    logits = peaked_logits(4, models.VOCAB)
    made = grammars(['start: "a"', 'start: "b"'])
    started = started_masks(made, np.array([9, 1, 8, 0]))
    assert started is not None
    changed = logits.clone()
    started.result().apply(changed)
    assert torch.equal(changed[[0, 2]], logits[[0, 2]])
    assert changed[1].argmax() == TEXTS.index(b"b")
    assert changed[3].argmax() == TEXTS.index(b"a")


@pytest.mark.parametrize(
    "settings",
    [
        Parameters(greedy=True),
        Parameters(seed=3),
        Parameters(seed=3, top_k=1),
        Parameters(seed=3, top_p=0.1, temperature=1.9, min_p=0.5),
        Parameters(seed=3, repetition_penalty=1.5, logit_bias_tokens=[5], logit_bias_values=[100.0]),
        Parameters(seed=3, first_end_position=50, end_token_ids=[END]),
        Parameters(seed=3, first_end_position=50, end_token_ids=[END, TEXTS.index(b"a"), TEXTS.index(b"b")]),
        Parameters(seed=3, logit_bias_tokens=tokens("ab"), logit_bias_values=[-torch.inf, -torch.inf]),
    ],
    ids=str,
)
def test_a_mask_counts_more_than_anything_that_forbids_a_token(settings):
    sampler = sampler_for(models.VOCAB, [settings])
    made = grammars(["start: /[ab]/"])
    for seed in range(5):
        logits = peaked_logits(1, models.VOCAB, seed)
        output = sampler.begin(logits, np.arange(1), np.ones(1, dtype=np.int64), masks(made, 1)).read()
        assert not output.failed.any()
        assert TEXTS[output.token_ids[0]] in {b"a", b"b"}


def test_a_text_ends_early_only_where_its_grammar_does():
    settings = Parameters(seed=3, first_end_position=50, end_token_ids=[END])
    sampler = sampler_for(models.VOCAB, [settings])
    made = grammars(['start: "a"*'])
    logits = torch.zeros(1, models.VOCAB)
    logits[0, END] = 50.0
    output = sampler.begin(logits, np.arange(1), np.ones(1, dtype=np.int64), masks(made, 1)).read()
    assert TEXTS[output.token_ids[0]] in {b"a", b"aa"}


def test_log_probabilities_are_those_of_the_model():
    sampler = sampler_for(models.VOCAB, [Parameters(greedy=True)], logprobs=True)
    made = grammars(['start: "a"'])
    logits = peaked_logits(1, models.VOCAB)
    expected = torch.log_softmax(logits, 1)[0, TEXTS.index(b"a")]
    output = sampler.begin(logits.clone(), np.arange(1), np.ones(1, dtype=np.int64), masks(made, 1)).read()
    assert output.logprobs is not None
    assert output.logprobs[0] == pytest.approx(float(expected), abs=1e-5)


def greedy_tokens(made: Grammars, logits: torch.Tensor, ids: np.ndarray, checked: bool) -> list[int]:
    """Greedy tokens of sequences, by checks or by masks."""
    sampler = sampler_for(models.VOCAB, [Parameters(greedy=True)] * len(ids))
    found = None if checked else started_masks(made, ids)
    sampled = sampler.begin(
        logits.clone(),
        np.arange(len(ids)),
        np.ones(len(ids), dtype=np.int64),
        found.result() if found is not None else None,
        checks=started_checks(made, ids) if checked else None,
    )
    return sampled.token_ids.tolist()


def test_checked_tokens_are_those_of_masks():
    rules = ["start: /[a-e]*/", "start: /[0-9]+/", 'start: "ab" /./', "start: /(?s:.)*/", 'start: ("q" | "ab")*']
    ids = np.arange(len(rules))
    by_checks, by_masks = grammars(rules), grammars(rules)
    kinds = set()
    for position in range(1, 12):
        logits = peaked_logits(len(rules), models.VOCAB, seed=position)
        expected = greedy_tokens(by_masks, logits, ids, checked=False)
        assert greedy_tokens(by_checks, logits, ids, checked=True) == expected
        kinds |= set((logits.argmax(1).numpy() == np.array(expected)).tolist())
        for made in (by_checks, by_masks):
            made.feed(ids, np.full(len(ids), position), np.array(expected))
    # Some tokens were allowed, and some were refused.
    assert kinds == {True, False}


def test_a_checked_token_is_in_the_text_once():
    made = grammars(['start: "aaa"'])
    logits = torch.zeros(1, models.VOCAB)
    logits[0, TEXTS.index(b"a")] = 1.0
    assert greedy_tokens(made, logits, np.array([0]), checked=True) == tokens("a")
    made.feed(np.array([0]), np.array([1]), np.array(tokens("a")))
    assert allowed(masks(made, 1), 0) == {b"a", b"aa"}


def test_a_refused_token_is_in_no_text():
    made = grammars(['start: "aaa"'])
    checks = started_checks(made, np.array([7, 0]))
    assert checks is not None
    refused = checks.refused(torch.tensor([3, TEXTS.index(b"x")]), torch.tensor([1.0, 1.0]))
    assert refused is not None
    assert refused.rows.tolist() == [1]
    assert allowed(masks(made, 1), 0) == {b"a", b"aa"}


@pytest.mark.parametrize("rules", ['start: "ab" /[0-9]/', "start: /[a-e]*/", 'start: "x" "y"?', "start: /(?s:.)+/"])
def test_every_token_that_a_mask_has_passes_its_check(rules):
    for before in ("", "a", "ab", "x", "xy"):
        made = grammars([rules])
        checks = started_checks(made, np.array([0]))
        assert checks is not None
        matching = checks.matchings[0]
        if not all(matching.take(token) for token in tokens(before)):
            continue
        found = allowed(masks(made, 1), 0)
        passing = {text for id, text in enumerate(TEXTS) if text and matching.matcher.validate_tokens([id])}
        # A text that has ended has its mask, since no token passes.
        assert passing == (set() if matching.has_ended else found)


def test_a_grammar_counts_more_than_what_forbids_every_token_when_checked():
    made = grammars(['start: "a"'])
    logits = torch.full((1, models.VOCAB), -torch.inf)
    assert greedy_tokens(made, logits, np.array([0]), checked=True) == tokens("a")


def test_rows_with_nan_are_left_as_they_are():
    made = grammars(['start: "a"'])
    checks = started_checks(made, np.array([0]))
    assert checks is not None
    assert checks.refused(torch.tensor(tokens("x")), torch.tensor([torch.nan])) is None
    assert allowed(masks(made, 1), 0) == {b"a"}


def test_a_grammar_that_cannot_be_followed_fails_alone_when_checked():
    made = grammars(["start: nowhere", 'start: "a"'])
    checks = started_checks(made, np.arange(2))
    assert checks is not None
    assert checks.refused(torch.tensor(tokens("aa")), torch.ones(2)) is not None
    assert list(checks.failures) == [0]


def test_drawn_sequences_and_drafts_have_masks():
    made = grammars(['start: "a"'] * 3)
    masked, checks = made.start(
        np.arange(3), np.array([1, 2, 1]), np.array([0, 0, 5, 0]), np.array([True, True, False]), None
    )
    assert masked is not None
    assert checks is not None
    assert (masked.result().rows.tolist(), checks.rows.tolist()) == ([1, 2, 3], [0])
