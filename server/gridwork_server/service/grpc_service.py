"""The shard's gRPC service. Calls are passed on to the model's thread, so that the service answers at any time."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
from loguru import logger

from gridwork_server import logs
from gridwork_server._proto import shard_pb2 as pb
from gridwork_server._proto import shard_pb2_grpc as pb_grpc
from gridwork_server.config import ShardConfig
from gridwork_server.errors import LimitError
from gridwork_server.service.worker import Worker, end_process

_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1), ("grpc.so_reuseport", 0)]


class ShardService(pb_grpc.ShardServicer):
    """Serves the calls of the contract, which says what each means."""

    def __init__(self, worker: Worker, rank: int) -> None:
        self._worker = worker
        self._rank = rank
        self._run_id = 0
        self._has_cache = False

    async def Health(self, request: pb.HealthRequest, context: grpc.aio.ServicerContext) -> pb.HealthResponse:
        if self._worker.error is not None:
            state = pb.HealthResponse.STATE_FAILED
        elif not self._worker.is_ready:
            state = pb.HealthResponse.STATE_LOADING
        else:
            state = pb.HealthResponse.STATE_READY
        return pb.HealthResponse(state=state, message=self._worker.error or self._worker.state, rank=self._rank)

    async def Info(self, request: pb.InfoRequest, context: grpc.aio.ServicerContext) -> pb.InfoResponse:
        await self._require_ready(context)
        if self._worker.encoder is not None:
            return self._worker.encoder.info()
        assert self._worker.runner is not None
        return self._worker.runner.info()

    async def Warmup(self, request: pb.WarmupRequest, context: grpc.aio.ServicerContext) -> pb.WarmupResponse:
        await self._require_generator(context)
        self._run_id += 1  # ends a stream of steps that may still be open
        try:
            size = await asyncio.wrap_future(self._worker.warm_up(request))
        except (LimitError, MemoryError, RuntimeError) as error:
            self._has_cache = False
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"the KV cache cannot be set up: {error}")
        self._has_cache = True
        return pb.WarmupResponse(
            num_blocks=size.num_blocks, kv_cache_bytes=size.bytes, bytes_per_token=size.bytes_per_token
        )

    async def Run(
        self, request_iterator: AsyncIterator[pb.Step], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.StepResult]:
        await self._require_generator(context)
        if not self._has_cache:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "call Warmup first")
        self._run_id += 1
        run_id = self._run_id
        # Drops sequences of an earlier stream that has not quite ended.
        await asyncio.wrap_future(self._worker.reset())
        # A client waits for the headers before it sends steps. By default they are sent with the first result.
        await context.send_initial_metadata(())
        loop = asyncio.get_running_loop()
        results: asyncio.Queue[pb.StepResult | None] = asyncio.Queue()

        def done(result: pb.StepResult) -> None:
            loop.call_soon_threadsafe(results.put_nowait, result)

        async def read() -> None:
            try:
                async for step in request_iterator:
                    if self._run_id != run_id:
                        break
                    self._worker.run(step, done)
            finally:
                # Queued after the last step, so that its result is not lost.
                self._worker.call(lambda _runner: loop.call_soon_threadsafe(results.put_nowait, None))

        reader = asyncio.create_task(read())
        try:
            while (result := await results.get()) is not None:
                yield result
        finally:
            reader.cancel()
            if self._run_id == run_id:
                await asyncio.wrap_future(self._worker.reset())

    async def Encode(self, request: pb.EncodeRequest, context: grpc.aio.ServicerContext) -> pb.EncodeResponse:
        await self._require_ready(context)
        if self._worker.encoder is None:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "this shard generates: call Warmup and Run")
        from gridwork_server.encoder.runner import BadBatch

        try:
            return await asyncio.wrap_future(self._worker.encode(request))
        except BadBatch as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except Exception as error:
            logger.opt(exception=True).error("a batch failed")
            if self._worker.encoder is not None and self._worker.encoder.loaded.device.type != "cpu":
                # The GPU is in an undefined state: only a restart helps.
                end_process(f"a batch failed: {error}")
            await context.abort(grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}")
        raise AssertionError("abort() has raised")

    async def _require_generator(self, context: grpc.aio.ServicerContext) -> None:
        await self._require_ready(context)
        if self._worker.encoder is not None:
            await context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"this shard serves --task {self._worker.encoder.loaded.task}: call Encode",
            )

    async def _require_ready(self, context: grpc.aio.ServicerContext) -> None:
        if self._rank != 0:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "only rank 0 takes steps")
        if not self._worker.is_ready:
            await context.abort(grpc.StatusCode.UNAVAILABLE, self._worker.error or self._worker.state)


@contextmanager
def _files_of_this_user_alone() -> Iterator[None]:
    """Makes files accessible to this user only, whatever the umask. Anybody who can open the socket can make the model
    say anything to others."""
    before = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(before)


def serve(config: ShardConfig, otlp_endpoint: str | None) -> int:
    """Serves until the process is told to end. Returns the exit code."""
    return asyncio.run(_serve(config, otlp_endpoint))


async def _serve(config: ShardConfig, otlp_endpoint: str | None) -> int:
    worker = Worker(config, otlp_endpoint)
    server = grpc.aio.server(options=_OPTIONS)
    pb_grpc.add_ShardServicer_to_server(ShardService(worker, config.rank), server)
    if config.serve_tokenizer and config.rank == 0:
        from gridwork_server.service.text_tokenizer import TextTokenizerService

        tokenizer = TextTokenizerService(config)
        pb_grpc.add_TextTokenizerServicer_to_server(tokenizer, server)
        tokenizer.start()
    address = config.socket
    if ":" not in address or "/" in address:
        Path(address).unlink(missing_ok=True)
        address = f"unix:{address}"
    try:
        with _files_of_this_user_alone():
            server.add_insecure_port(address)
    except RuntimeError as error:
        logs.fatal(f"cannot listen on {config.socket}: {error}; give --socket another path or port")
        return 1
    await server.start()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    worker.start()
    logger.debug(f"rank {config.rank} listens on {config.socket}")
    await stop.wait()
    if worker.runner is not None:
        worker.runner.spans.shut_down()
    # The model's thread may be in the middle of a step. There is nothing to save.
    os._exit(0)
