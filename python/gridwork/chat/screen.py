"""Shows answers while they stream: markdown on a terminal, plain text elsewhere."""

import sys
from types import TracebackType

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment
from rich.text import Text

_REDRAWS_PER_S = 12


def num_finished(text: str) -> int:
    """Number of letters at the start of a markdown text that no further letters change: all blocks but the last."""
    starts = [token.map[0] for token in Markdown(text).parsed if token.level == 0 and token.map]
    if len(starts) < 2:
        return 0
    return sum(len(line) for line in text.splitlines(keepends=True)[: starts[-1]])


class _Tail:
    """The last lines of something, as many as the terminal has room for. What is above would be drawn twice."""

    def __init__(self, inner: RenderableType) -> None:
        self._inner = inner

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(self._inner, options.update(height=None), pad=False)
        for line in lines[-max(1, console.height - 2) :]:
            yield from line
            yield Segment.line()


class _Trimmed:
    """Something without the empty lines around it."""

    def __init__(self, inner: RenderableType) -> None:
        self._inner = inner

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(self._inner, options.update(height=None), pad=False)
        full = [at for at, line in enumerate(lines) if any(segment.text.strip() for segment in line)]
        for line in lines[full[0] : full[-1] + 1] if full else ():
            yield from line
            yield Segment.line()


class PlainAnswer:
    """An answer as it comes, without reasoning and without control characters."""

    def __init__(self) -> None:
        self._has_text = False

    def __enter__(self) -> "PlainAnswer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._has_text:
            print(flush=True)

    def reason(self, delta: str) -> None:
        """Adds reasoning, which is not shown."""

    def add(self, delta: str) -> None:
        """Adds a piece of the answer."""
        self._has_text = True
        sys.stdout.write(delta)
        sys.stdout.flush()


class MarkdownAnswer:
    """An answer as markdown, its reasoning before it, dimmed. Finished blocks are printed for good, and scroll like any
    other text; only the block that grows is redrawn."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(
            console=console, refresh_per_second=_REDRAWS_PER_S, transient=True, vertical_overflow="visible"
        )
        self._reasoning = ""
        self._text = ""
        self._has_printed = False

    def __enter__(self) -> "MarkdownAnswer":
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.update(Text(""))
        self._live.stop()
        self._end_reasoning()
        self._print(self._text)

    def reason(self, delta: str) -> None:
        """Adds reasoning."""
        self._reasoning += delta
        self._live.update(_Tail(Text(self._reasoning, style="dim")))

    def add(self, delta: str) -> None:
        """Adds a piece of the answer."""
        self._end_reasoning()
        self._text += delta
        if "\n" in delta and (finished := num_finished(self._text)):
            self._live.update(Text(""))
            self._print(self._text[:finished])
            self._text = self._text[finished:]
        self._live.update(_Tail(Markdown(self._text)))

    def _end_reasoning(self) -> None:
        if self._reasoning.strip():
            self._live.update(Text(""))
            self._console.print(Text(self._reasoning.strip(), style="dim"))
            self._has_printed = True
        self._reasoning = ""

    def _print(self, text: str) -> None:
        if not text.strip():
            return
        if self._has_printed:
            self._console.print()
        self._console.print(_Trimmed(Markdown(text)))
        self._has_printed = True
