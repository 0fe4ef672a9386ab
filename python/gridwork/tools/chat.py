"""`gridwork chat [MODEL|URL]`: a conversation in the terminal."""

import argparse
import asyncio
import os
import sys
import time

from rich.console import Console

from gridwork.chat import commands, lines, screen
from gridwork.chat.conversation import Conversation, Usage
from gridwork.client import Client
from gridwork.errors import EngineDied, GridworkError, InvalidRequest
from gridwork.tools.serving import Serving, find_model, opened_server, read_target

_DEFAULT_URL = "http://127.0.0.1:3000"


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "chat",
        help="talk to a model in the terminal",
        description="Talks to a model in the terminal. Given a model, it starts a server of its own, with any of the "
        "server's flags. /help in the chat lists its commands.",
    )
    add = parser.add_argument
    add(
        "target",
        nargs="?",
        metavar="MODEL|URL",
        help=f"folder, .gguf file, name on the hub, or URL of a server; default $GRIDWORK_MODEL, or {_DEFAULT_URL}",
    )
    add("--system", metavar="TEXT", default="", help="system message")
    add("--set", metavar="NAME=VALUE", action="append", default=[], help="parameter of requests, such as temperature=0")
    add("--model", metavar="NAME", help="model's name in requests; default the first that the server lists")
    add("--api-key", metavar="KEY", help="key of the server")
    parser.set_defaults(run=run, takes_flags=True)


def run(args: argparse.Namespace) -> int:
    """0: the input has ended. 1: without a terminal, a question was not answered."""
    given = args.target or os.environ.get("GRIDWORK_MODEL") or ""
    conversation = Conversation(system=args.system)
    for each in args.set:
        conversation.set(each)
    target = read_target(given or _DEFAULT_URL, args.flags)
    with opened_server(target, args.flags, args.api_key) as serving, asyncio.Runner() as runner:
        try:
            model = runner.run(find_model(serving, args.model))
        except EngineDied as error:
            if given:
                raise
            raise InvalidRequest(f"{error}; name a model or the URL of a server: gridwork chat MODEL|URL") from None
        return Chat(serving, model, conversation, runner).talk()


class Chat:
    """A conversation that goes on."""

    def __init__(self, serving: Serving, model: str, conversation: Conversation, runner: asyncio.Runner) -> None:
        self._client: Client = serving.client()
        self._model = model
        self._state = commands.State(conversation)
        self._runner = runner
        self._console = Console(highlight=False, emoji=False)
        self._is_shown = self._console.is_terminal
        self._has_failed = False

    def talk(self) -> int:
        """Reads messages and answers them, until the input ends. Returns the exit code."""
        read = lines.reader(commands.NAMES)
        if self._is_shown and sys.stdin.isatty():
            self._say(f"{self._model}; /help lists the commands, Ctrl-D ends")
        while not self._state.has_ended:
            try:
                for message in lines.messages(read):
                    self._do(message)
                    if self._state.has_ended:
                        break
                else:
                    if self._is_shown:
                        print()
                    break
            except KeyboardInterrupt:
                # At the prompt: the line is dropped.
                if not sys.stdin.isatty():
                    raise
                print()
        return 1 if self._has_failed and not self._is_shown else 0

    def _do(self, message: str) -> None:
        question: str | None = message
        if message.startswith("/"):
            try:
                outcome = commands.run(self._state, message)
            except InvalidRequest as error:
                self._fail(error)
                return
            if outcome.says:
                self._say(outcome.says)
            question = outcome.asks
        if question is not None:
            self._ask(question)

    def _ask(self, question: str) -> None:
        """Asks, shows the answer, and keeps both. Ctrl-C ends the answer, of which the part so far is kept."""
        conversation, answer, usage = self._state.conversation, _Answer(), Usage()
        conversation.ask(question)
        try:
            self._runner.run(self._stream(answer, usage))
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
            self._say("(stopped)")
        except GridworkError as error:
            self._fail(error)
        if not answer.text and not usage.output_tokens:
            conversation.undo()
            return
        conversation.answer(answer.text)
        self._state.usages.append(usage)

    async def _stream(self, answer: "_Answer", usage: Usage) -> None:
        conversation = self._state.conversation
        body = {
            **conversation.parameters,
            "model": self._model,
            "messages": conversation.messages(),
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        began = time.perf_counter()
        shown = screen.MarkdownAnswer(self._console) if self._is_shown else screen.PlainAnswer()
        usage.is_counted = False
        try:
            with shown:
                async for chunk in self._client.stream("/v1/chat/completions", body):
                    for choice in chunk.get("choices") or []:
                        delta = choice.get("delta") or {}
                        if reasoning := delta.get("reasoning_content") or delta.get("reasoning"):
                            shown.reason(reasoning)
                        if content := delta.get("content"):
                            answer.text += content
                            shown.add(content)
                        if reasoning or content:
                            usage.output_tokens += not usage.is_counted
                            usage.ttft_s = usage.ttft_s or time.perf_counter() - began
                    if counted := chunk.get("usage"):
                        usage.is_counted = True
                        usage.prompt_tokens = counted.get("prompt_tokens") or 0
                        usage.output_tokens = counted.get("completion_tokens") or 0
                        usage.cached_tokens = (counted.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        finally:
            usage.seconds = time.perf_counter() - began
            # The loop stands still until the next question, and would not see that the server closes a connection.
            await self._client.close()

    def _say(self, text: str) -> None:
        """Says something that is no part of the conversation: on a terminal dimmed, elsewhere on stderr."""
        if self._is_shown:
            self._console.print(text, style="dim", markup=False)
        else:
            print(text, file=sys.stderr)

    def _fail(self, error: Exception) -> None:
        self._has_failed = True
        if self._is_shown:
            self._console.print(f"error: {error}", style="red", markup=False)
        else:
            print(f"error: {error}", file=sys.stderr)


class _Answer:
    """The text of an answer so far."""

    def __init__(self) -> None:
        self.text = ""
