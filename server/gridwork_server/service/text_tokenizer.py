"""Tokenizes for the router when the model's tokenizer exists only as Python code."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
from loguru import logger

from gridwork_server._proto import shard_pb2 as pb
from gridwork_server._proto import shard_pb2_grpc as pb_grpc
from gridwork_server.config import ShardConfig
from gridwork_server.prepare.errors import PrepareError
from gridwork_server.startup import import_lock


class TextTokenizerService(pb_grpc.TextTokenizerServicer):
    """Loads the tokenizer in a thread of its own and answers with it, one text at a time."""

    def __init__(self, config: ShardConfig) -> None:
        self._config = config
        # A single thread: a model's own code may not be safe to call from two at once.
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokenizer")
        self._loaded = threading.Event()
        self._error: str | None = None

    def start(self) -> None:
        """Starts loading."""
        self._pool.submit(self._load)

    async def Tokenize(self, request: pb.TokenizeRequest, context: grpc.aio.ServicerContext) -> pb.TokenizeResponse:
        if not self._loaded.is_set():
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the tokenizer is still loading")
        if self._error is not None:
            await context.abort(grpc.StatusCode.INTERNAL, self._error)
        loop = asyncio.get_running_loop()
        try:
            ids = await loop.run_in_executor(self._pool, self._encode, request.text, request.add_special_tokens)
        except Exception as error:  # a model's own code may raise anything
            logger.opt(exception=True).warning("a text cannot be tokenized")
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{type(error).__name__}: {error}")
        return pb.TokenizeResponse(token_ids=ids)

    def _load(self) -> None:
        try:
            with import_lock.LOCK:
                from gridwork_server.prepare.tokenizer import load_tokenizer

                self._tokenizer = load_tokenizer(
                    self._config.model_path, self._config.trust_remote_code, self._config.code_revision
                )
        except PrepareError as error:
            self._error = str(error)
            logger.error(f"the tokenizer cannot be loaded: {error}")
        finally:
            self._loaded.set()

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return [int(id) for id in self._tokenizer.encode(text, add_special_tokens=add_special_tokens)]
