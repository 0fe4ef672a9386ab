"""Verifies drafts: decides which sampled tokens are a sequence's next ones.

A token is sampled at every position with that position's own random number, from the distribution that follows if all
drafts before it are right. While they are, it is the very token that would have been sampled without drafts, so the
result does not depend on the guesses. In distribution this is the rejection sampling of Y. Leviathan et al., "Fast
Inference from Transformers via Speculative Decoding", 2023, section 2.3, for a guess without randomness: a draft is
taken with its own probability, and its replacement is drawn from the other tokens.
"""

import numpy as np


def taken(tokens: np.ndarray, failed: np.ndarray, inputs: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """bool [K]: tokens that are taken. Of each sequence these are the first ones, up to the first wrong guess.

    tokens, failed: int64 and bool [K], sampled at consecutive positions of each sequence, and whether sampling failed.
    A failed token is not taken, nor any after it. inputs: int64 [K], the token that was computed at each position: the
    sequence's last known token, then its drafts. counts: int64 [S], number of positions of each sequence, at least 1.
    """
    first = np.cumsum(counts) - counts
    wrong = np.zeros(len(tokens), dtype=bool)
    wrong[1:] = (tokens[:-1] != inputs[1:]) | failed[:-1]
    wrong[first] = False
    num_wrong = np.cumsum(wrong)
    return (num_wrong == np.repeat(num_wrong[first], counts)) & ~failed
