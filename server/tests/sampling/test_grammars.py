"""Grammars of sequences, and the masks that they give."""

import numpy as np
import pytest
import torch

from gridwork_server._proto import shard_pb2 as pb
from gridwork_server.sampling import Grammars, TokenMasks

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
        started = made.start(ids, None, np.zeros(count, dtype=np.int64), None)
    else:
        counts = np.array([len(each) + 1 for each in drafts])
        inputs = np.concatenate([np.array([0, *each], dtype=np.int64) for each in drafts])
        started = made.start(ids, counts, inputs, None)
    assert started is not None
    return started.result()


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
    started = made.start(np.array([5]), None, np.zeros(1, dtype=np.int64), None)
    assert started is not None
    assert allowed(started.result(), 0) == {b"c", b"d"}


def test_only_sequences_with_a_grammar_have_masks():
    made = grammars(['start: "a"'])
    assert made.start(np.array([3, 4]), None, np.zeros(2, dtype=np.int64), None) is None
    started = made.start(np.array([3, 0, 4]), None, np.zeros(3, dtype=np.int64), None)
    assert started is not None
    assert started.result().rows.tolist() == [1]
    made.release([0, 3])
    assert made.start(np.array([0]), None, np.zeros(1, dtype=np.int64), None) is None


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
    started = made.start(np.array([9, 1, 8, 0]), None, np.zeros(4, dtype=np.int64), None)
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
