"""Which of the tokens that were sampled behind drafts are a sequence's next ones.

A token is sampled at every position with that position's own random number, from the distribution that follows if all
drafts before it are right. For as long as they are, it is the very token that would have been sampled without drafts:
what is taken does not depend on what was guessed. In distribution this is the rejection sampling of Y. Leviathan et
al., "Fast Inference from Transformers via Speculative Decoding", 2023, section 2.3, for a guess without randomness: a
draft is taken with its own probability, and what replaces it is drawn from the others.
"""

import numpy as np


def taken(tokens: np.ndarray, failed: np.ndarray, inputs: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """bool [K]: of each sequence the first tokens, as long as each was guessed right but the last.

    tokens, failed: int64 and bool [K], sampled at consecutive positions of each sequence, and whether that failed; what
    failed is not taken, and nothing behind it. inputs: int64 [K], the token that was computed at each position: the
    sequence's last known one, then its drafts. counts: int64 [S], positions of each of the sequences, at least 1.
    """
    first = np.cumsum(counts) - counts
    wrong = np.zeros(len(tokens), dtype=bool)
    wrong[1:] = (tokens[:-1] != inputs[1:]) | failed[:-1]
    wrong[first] = False
    num_wrong = np.cumsum(wrong)
    return (num_wrong == np.repeat(num_wrong[first], counts)) & ~failed
