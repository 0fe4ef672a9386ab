"""Sends a request of any kind to a server of this program or a running one. `LLM` and `AsyncLLM` share it."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from gridwork import requests
from gridwork.client import Address, Client, is_address
from gridwork.errors import EngineDied, GridworkError, InvalidRequest
from gridwork.gate import Gate
from gridwork.outputs import (
    ClassificationOutput,
    ClassificationRequestOutput,
    EmbeddingOutput,
    EmbeddingRequestOutput,
    RequestOutput,
    RerankResult,
    ScoringOutput,
    ScoringRequestOutput,
    TokenVectorsOutput,
    TokenVectorsRequestOutput,
)
from gridwork.prompts import Prompt
from gridwork.sampling import SamplingParams
from gridwork.seeds import Seeds
from gridwork.server import Server

_NAMES_OF_MODEL = ("model", "model_id", "model_path")
_CONCURRENT = 128


class Engine:
    """A server and the connection to it. Its coroutines belong to the event loop that runs the first of them."""

    def __init__(self, model: str | None, options: Mapping[str, Any], flags: Sequence[str] = ()) -> None:
        """Starts the server, without waiting, unless `model` is the address of one. Raises InvalidRequest.

        flags: more of the launcher's flags, as they stand on a command line."""
        options = dict(options)
        given = [model, *(options.pop(name, None) for name in _NAMES_OF_MODEL)]
        names = [str(name) for name in given if name is not None]
        if len(names) != 1 or not names[0]:
            many = "is given more than once" if len(names) > 1 else "is missing"
            raise InvalidRequest(
                f"`model` {many}; give a folder, a name on the Hugging Face hub, or the URL of a server", field="model"
            )
        self.seeds = Seeds(options.pop("seed", None))
        self.closed = False
        self._server: Server | None = None
        self._client: Client | None = None
        self._opening = asyncio.Lock()
        self._numbers = itertools.count()
        self._info: dict[str, Any] = {}
        self._gate = Gate(_CONCURRENT)
        key = options.get("api_key")
        self._api_key: str | None = next(iter(key), None) if isinstance(key, list | tuple) else key
        if is_address(names[0]):
            others = [*(name for name in options if name != "api_key"), *flags[:1]]
            if others:
                raise InvalidRequest(
                    f"`{others[0]}` is an argument of a server that is started, and {names[0]} runs already; remove it",
                    field=others[0],
                )
            self._address: Address | None = Address.read(names[0], self._api_key)
        else:
            self._address = None
            self._server = Server(names[0], options, flags)

    @property
    def pid(self) -> int | None:
        """Process id of the launcher; None for a server that was there before."""
        return self._server.pid if self._server else None

    def wait_ready(self) -> None:
        """Waits until a server that was started answers. Raises InvalidRequest, ModelError or EngineDied."""
        if self._server is not None:
            self._server.wait_ready()

    def close_server(self) -> None:
        """Ends a server that was started. Any thread may call this."""
        self.closed = True
        if self._server is not None:
            self._server.close()

    async def close_client(self) -> None:
        """Closes all connections."""
        if self._client is not None:
            await self._client.close()

    async def _opened(self) -> Client:
        if self.closed:
            raise EngineDied("this LLM is closed")
        if self._server is not None:
            self._server.check_owner()
        if self._client is not None:
            return self._client
        async with self._opening:
            if self._client is None:
                address = self._address
                if self._server is not None:
                    ready = await asyncio.to_thread(self._server.wait_ready)
                    address = Address.read(f"unix:{ready.socket}", self._api_key)
                assert address is not None
                client = Client(address, self._death)
                try:
                    self._info = await client.get("/info")
                except BaseException:
                    await client.close()
                    raise
                self._gate = Gate(int(self._info.get("max_concurrent_requests") or _CONCURRENT))
                self._client = client
        return self._client

    def _death(self) -> GridworkError | None:
        if self.closed:
            return EngineDied("this LLM is closed")
        if self._server is None or self._server.is_alive_soon():
            return None
        return self._server.death()

    async def info(self) -> dict[str, Any]:
        """The server's `/info`."""
        await self._opened()
        return self._info

    @property
    def model_path(self) -> str | None:
        """Folder of the model; None for a server that was there before."""
        return self._server.wait_ready().model_path if self._server else None

    async def concurrent(self) -> int:
        """Number of requests that the server takes at once."""
        await self._opened()
        return int(self._info.get("max_concurrent_requests") or _CONCURRENT)

    def next_id(self) -> str:
        """A new id of a request."""
        return str(next(self._numbers))

    # --- generating -------------------------------------------------------------------------------------------------

    async def complete(self, prompt: Prompt, params: SamplingParams | None) -> RequestOutput:
        """Continues a prompt."""
        prompt, params, text = await self._with_room(prompt, params)
        body = requests.completion_body(prompt, params, stream=False)
        return await self._generated("/v1/completions", body, text)

    async def answer(
        self, messages: object, params: SamplingParams | None, options: Mapping[str, Any]
    ) -> RequestOutput:
        """Answers a conversation."""
        body = requests.chat_body(messages, params, False, options)
        return await self._generated("/v1/chat/completions", body, None)

    async def _generated(self, path: str, body: dict[str, Any], text: str | None) -> RequestOutput:
        client, began, request_id = await self._opened(), time.time(), self.next_id()
        async with self._gate.inside(int(body.get("n") or 1)):
            answer, headers = await client.post(path, body)
        return requests.output_of(answer, headers, request_id, text, began)

    async def complete_stream(self, prompt: Prompt, params: SamplingParams | None) -> AsyncIterator[RequestOutput]:
        """Continues a prompt, piece by piece."""
        prompt, params, text = await self._with_room(prompt, params)
        body = requests.completion_body(prompt, params, stream=True)
        async for output in self._streamed("/v1/completions", body, text):
            yield output

    async def answer_stream(
        self, messages: object, params: SamplingParams | None, options: Mapping[str, Any]
    ) -> AsyncIterator[RequestOutput]:
        """Answers a conversation, piece by piece."""
        body = requests.chat_body(messages, params, True, options)
        async for output in self._streamed("/v1/chat/completions", body, None):
            yield output

    async def _streamed(self, path: str, body: dict[str, Any], text: str | None) -> AsyncIterator[RequestOutput]:
        client, num_choices = await self._opened(), int(body.get("n") or 1)
        growing = requests.Growing(self.next_id(), text, num_choices)
        async with self._gate.inside(num_choices):
            async for chunk in client.stream(path, body):
                yield growing.add(chunk)

    async def _with_room(
        self, prompt: Prompt, params: SamplingParams | None
    ) -> tuple[Prompt, SamplingParams | None, str | None]:
        """The prompt as token ids and a maximum number of tokens, where the parameters leave it to the context; and
        the prompt's text."""
        text = prompt.text
        if params is None or params.max_tokens is not None:
            return prompt, params, text
        token_ids = prompt.token_ids
        client = await self._opened()
        if token_ids is None:
            rendered, _ = await client.post("/v1/completions/render", {"prompt": prompt.body})
            token_ids = rendered[0]["token_ids"]
        room = max(int(self._info["max_total_tokens"]) - len(token_ids), 1)
        with_room = SamplingParams(**(vars(params) | {"max_tokens": room}))
        return Prompt(None, token_ids), with_room, text

    # --- encoders ---------------------------------------------------------------------------------------------------

    async def embed(self, prompt: Prompt, options: Mapping[str, Any]) -> EmbeddingRequestOutput:
        """The vector of a text."""
        body = {"input": prompt.body, "encoding_format": "base64", **options}
        answer = await self._posted("/v1/embeddings", body)
        output = EmbeddingOutput(requests.vector(answer["data"][0]["embedding"]))
        return EmbeddingRequestOutput(self.next_id(), prompt.text, output)

    async def embed_tokens(self, prompt: Prompt) -> TokenVectorsRequestOutput:
        """The vectors of a text's tokens."""
        answer = await self._posted("/embed_all", {"inputs": prompt.body})
        return TokenVectorsRequestOutput(self.next_id(), prompt.text, TokenVectorsOutput(answer[0]))

    async def classify(self, prompt: Prompt) -> ClassificationRequestOutput:
        """The labels of a text."""
        answer = await self._posted("/predict", {"inputs": _text(prompt)})
        scores = {each["label"]: each["score"] for each in answer}
        labels = [label for label in self._info.get("labels") or scores if label in scores]
        output = ClassificationOutput([scores[label] for label in labels], labels)
        return ClassificationRequestOutput(self.next_id(), prompt.text, output)

    async def score(self, text_1: str, text_2: str) -> ScoringRequestOutput:
        """How well two texts go together."""
        answer = await self._posted("/v1/score", {"text_1": text_1, "text_2": text_2})
        return ScoringRequestOutput(self.next_id(), None, ScoringOutput(answer["data"][0]["score"]))

    async def rerank(self, query: str, documents: list[str], top_n: int | None) -> list[RerankResult]:
        """The documents, best first."""
        body: dict[str, Any] = {"query": query, "documents": documents, "return_documents": False}
        if top_n is not None:
            body["top_n"] = top_n
        answer = await self._posted("/v1/rerank", body)
        results = ((each["index"], each["relevance_score"]) for each in answer["results"])
        return [RerankResult(index, score, documents[index]) for index, score in results]

    async def send(self, path: str, body: Mapping[str, Any]) -> tuple[int, Any]:
        """Status and JSON of the answer to any request."""
        client = await self._opened()
        async with self._gate.inside(1):
            return await client.send(path, body)

    async def _posted(self, path: str, body: Mapping[str, Any]) -> Any:
        client = await self._opened()
        async with self._gate.inside(1):
            answer, _ = await client.post(path, body)
        return answer


def _text(prompt: Prompt) -> str:
    if prompt.text is None:
        raise InvalidRequest("texts are classified, and not token ids", field="prompts")
    return prompt.text
