"""The text of one sequence within its grammar."""

from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llguidance import LLMatcher


@dataclass
class Matching:
    """A sequence's text within its grammar. `next_position` is that of the next token which `matcher` has not seen."""

    compiled: "Future[LLMatcher]"
    tokens: list[int]
    """Tokens generated before the sequence was admitted here."""
    next_position: int
    _matcher: "LLMatcher | None" = None

    @property
    def matcher(self) -> "LLMatcher":
        """The matcher of the text so far; waits until the grammar is compiled."""
        if self._matcher is None:
            self._matcher = self.compiled.result().deep_copy()
            self._matcher.consume_tokens(self.tokens)
        return self._matcher

    @property
    def has_ended(self) -> bool:
        """True if the grammar allows nothing more."""
        return self.matcher.is_stopped() and not self.matcher.is_error()

    def take(self, token: int) -> bool:
        """Adds the next token if the grammar allows it. Returns whether it does."""
        if not self.matcher.try_consume_tokens([token]):
            return False
        self.next_position += 1
        return True
