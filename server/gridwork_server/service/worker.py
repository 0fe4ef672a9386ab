"""The thread that the model runs in. All work on the model goes through its queue, in order."""

import gc
import os
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from loguru import logger

from gridwork_server import logs
from gridwork_server.config import ShardConfig
from gridwork_server.errors import LimitError, ModelError
from gridwork_server.model import folder as model_folder
from gridwork_server.model.task import Task
from gridwork_server.model.task import choose as choose_task
from gridwork_server.startup import import_lock

if TYPE_CHECKING:
    from gridwork_server._proto import shard_pb2 as pb
    from gridwork_server.encoder.runner import EncoderRunner
    from gridwork_server.step.overlapped import OverlappedSteps
    from gridwork_server.step.runner import CacheSize, Runner

Result = TypeVar("Result")

_POLL_S = 0.0002
"""Interval at which a step in flight on a GPU is polled while no other task waits."""

# Actions that rank 0 announces to the other ranks before it takes them.
_WARM_UP, _RESET, _RUN = range(3)


class Worker:
    """Loads the model in a thread of its own and runs tasks there."""

    def __init__(self, config: ShardConfig, otlp_endpoint: str | None) -> None:
        self._config = config
        self._otlp_endpoint = otlp_endpoint
        self._tasks: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._runner: Runner | None = None
        self._encoder: EncoderRunner | None = None
        self._overlapped: OverlappedSteps | None = None
        """Runs the steps on a single GPU; None elsewhere."""
        self.state = "starting"
        """Current activity, for people to read."""
        self.error: str | None = None
        """Reason why the model will never be ready."""
        self._thread = threading.Thread(target=self._main, name="model", daemon=True)

    def start(self) -> None:
        """Starts loading."""
        self._thread.start()

    @property
    def runner(self) -> "Runner | None":
        """The loaded model, or None while it is loading."""
        return self._runner

    @property
    def encoder(self) -> "EncoderRunner | None":
        """The loaded model when it is an encoder, else None."""
        return self._encoder

    @property
    def is_ready(self) -> bool:
        """True if loading has succeeded."""
        return self._runner is not None or self._encoder is not None

    def encode(self, request: "pb.EncodeRequest") -> "Future[pb.EncodeResponse]":
        """Computes a batch in the model's thread, after earlier tasks. Only for an encoder."""
        future: Future[pb.EncodeResponse] = Future()

        def run() -> None:
            assert self._encoder is not None
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(self._encoder.encode(request))
            except Exception as error:
                future.set_exception(error)

        self._tasks.put(run)
        return future

    def call(self, task: Callable[["Runner"], Result]) -> "Future[Result]":
        """Runs a task in the model's thread, after earlier tasks. Only after loading. A task whose future is cancelled
        before its turn does not run."""

        def run(runner: "Runner") -> Result:
            self._flush()
            return task(runner)

        return self._enqueue(run)

    def _enqueue(self, task: Callable[["Runner"], Result]) -> "Future[Result]":
        future: Future[Result] = Future()

        def run() -> None:
            assert self._runner is not None
            # A call whose client disconnects cancels its future, which is not possible from here on.
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(task(self._runner))
            except BaseException as error:
                future.set_exception(error)

        self._tasks.put(run)
        return future

    def warm_up(self, limits: "pb.WarmupRequest") -> "Future[CacheSize]":
        """Allocates the cache on every rank. The future's error is a LimitError when the limits cannot be met."""

        def task(runner: "Runner") -> "CacheSize":
            try:
                runner.group.announce(_WARM_UP, limits.SerializeToString())
                return runner.warm_up(limits)
            except LimitError:
                raise
            except Exception as error:
                if runner.group.world_size > 1:
                    end_process(f"the first step failed: {error}")
                raise

        return self.call(task)

    def reset(self) -> "Future[None]":
        """Drops every sequence on every rank."""

        def task(runner: "Runner") -> None:
            runner.group.announce(_RESET)
            runner.reset()

        return self.call(task)

    def run(self, step: "pb.Step", done: Callable[["pb.StepResult"], Any]) -> None:
        """Computes a step on every rank and calls `done`, in the model's thread, with the result."""

        def task(runner: "Runner") -> None:
            if self._overlapped is None:
                done(self._guarded(runner, step))
                return
            with _ends_the_process():
                self._overlapped.submit(step, done)

        self._enqueue(task)

    def _flush(self) -> None:
        if self._overlapped is not None:
            with _ends_the_process():
                self._overlapped.flush()

    def _guarded(self, runner: "Runner", step: "pb.Step") -> "pb.StepResult":
        try:
            if runner.group.world_size > 1:
                runner.group.announce(_RUN, step.SerializeToString())
            return runner.run(step)
        except Exception as error:
            ids = runner.request_ids.fields(step.sequence_ids)
            logger.opt(exception=True).bind(**ids).error(f"step {step.id} failed")
            # Other ranks wait in the middle of a sum, or the GPU is in an undefined state: only a restart helps.
            if runner.group.world_size > 1 or runner.loaded.device.type != "cpu":
                end_process(f"a step failed: {error}")
            return runner.fail(step, f"{type(error).__name__}: {error}")

    def _main(self) -> None:
        try:
            with import_lock.LOCK, _no_garbage_collection(), _lean_imports(self._config):
                self._load_with_all_imports_if_need_be()
        except ModelError as error:
            self._fail(str(error))
            return
        except Exception as error:
            logger.opt(exception=True).error("loading failed")
            self._fail(f"the model in {self._config.model_path} cannot be loaded: {type(error).__name__}: {error}")
            return
        if self._runner is None or self._runner.group.is_leader:
            while True:
                try:
                    self._next_task()()
                except Exception as error:
                    logger.opt(exception=True).error("the model's thread failed")
                    end_process(f"the model's thread failed: {type(error).__name__}: {error}")
        else:
            self._follow(self._runner)

    def _next_task(self) -> Callable[[], None]:
        """Waits for the next task. Meanwhile the result of a step in flight is delivered as soon as it is computed: the
        router may wait for it before it sends another step."""
        while self._overlapped is not None and self._overlapped.has_begun:
            try:
                return self._tasks.get(timeout=_POLL_S)
            except queue.Empty:
                if self._overlapped.is_computed:
                    self._flush()
        return self._tasks.get()

    def _load_with_all_imports_if_need_be(self) -> None:
        try:
            self._load()
        except Exception as error:
            from gridwork_server.startup import deferred_imports

            wrong_settings = isinstance(error, ModelError) and error.__cause__ is None
            if wrong_settings or not deferred_imports.give_up():
                raise
            logger.warning(f"loading again with all of PyTorch imported: {type(error).__name__}: {error}")
            self._load()

    def _load(self) -> None:
        self.state = "checking the model's folder"
        content = model_folder.check(self._config)
        task = choose_task(self._config.task, self._config.model_path, content)
        _check_task(self._config, task)
        self.state = "importing PyTorch"
        import torch

        cores = len(os.sched_getaffinity(0))
        from gridwork_kernels import cpu_library

        if self._config.device == "cuda" and self._config.rank >= torch.cuda.device_count():
            raise ModelError(
                f"--device cuda: rank {self._config.rank} needs a GPU, and PyTorch sees {torch.cuda.device_count()}; "
                "check CUDA_VISIBLE_DEVICES and the driver, or use --device cpu"
            )
        threads = self._config.cpu_threads or max(1, cores // self._config.world_size)
        torch.set_num_threads(threads)
        cpu_library.set_num_threads(threads)
        if task != Task.GENERATE:
            self._load_encoder(content, task)
            return
        self.state = "importing Transformers"
        from gridwork_server.model.loading import load
        from gridwork_server.parallel.group import RankGroup
        from gridwork_server.step.runner import Runner
        from gridwork_server.tracing import SequenceSpans

        if self._config.world_size > 1:
            self.state = f"meeting the other {self._config.world_size - 1} ranks"
        group = RankGroup.join(self._config)
        self.state = f"loading {self._config.model_path}"
        loaded = load(self._config, group)
        spans = SequenceSpans(self._otlp_endpoint) if self._otlp_endpoint and group.is_leader else None
        self._runner = Runner(loaded, self._config, group, spans)
        if loaded.device.type == "cuda" and group.world_size == 1:
            from gridwork_server.step.overlapped import OverlappedSteps

            self._overlapped = OverlappedSteps(self._runner)
        self.state = "ready"
        logger.info(
            f"loaded {type(loaded.model).__name__}: {loaded.num_parameters / 1e6:.1f}M parameters, "
            f"{str(loaded.dtype).removeprefix('torch.')} on {loaded.device}, "
            f"{loaded.path.name} path, attention {loaded.path.attention_name}, "
            f"{torch.get_num_threads()} threads" + "".join(f", {note}" for note in loaded.notes)
        )

    def _load_encoder(self, content: Any, task: Task) -> None:
        """Loads an encoder. content: of config.json."""
        self.state = f"loading {self._config.model_path} to {task}"
        from gridwork_server.encoder.loading import load
        from gridwork_server.encoder.runner import EncoderRunner

        self._encoder = EncoderRunner(load(self._config, content, task))
        self.state = "ready"

    def _follow(self, runner: "Runner") -> None:
        """Takes the actions that rank 0 announces, on the other ranks."""
        from gridwork_server._proto import shard_pb2 as pb

        while True:
            try:
                what, payload = runner.group.next_announced()
                if what == _WARM_UP:
                    try:
                        runner.warm_up(pb.WarmupRequest.FromString(payload))
                    except LimitError as error:
                        logger.error(str(error))
                elif what == _RESET:
                    runner.reset()
                else:
                    runner.run(pb.Step.FromString(payload))
            except Exception as error:
                end_process(f"rank {self._config.rank} failed: {error}")

    def _fail(self, message: str) -> None:
        self.error = message
        end_process(message)


@contextmanager
def _ends_the_process() -> Iterator[None]:
    """Ends the process when a step fails on a GPU, which is then in an undefined state: only a restart helps."""
    try:
        yield
    except Exception as error:
        logger.opt(exception=True).error("a step failed")
        end_process(f"a step failed: {error}")


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Turns garbage collection off, and exempts all objects made meanwhile from it. They stay for good: searching them
    takes a tenth of the start, and time in later steps."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _check_task(config: ShardConfig, task: Task) -> None:
    """Raises ModelError for settings that are not compatible with --quantize or --compile."""
    if config.quantize and task != Task.GENERATE:
        raise ModelError(
            f"--quantize needs a model that generates, and this one is served to {task}; remove --quantize"
        )
    if not config.compile:
        return
    if task != Task.GENERATE:
        raise ModelError(f"--compile needs a model that generates, and this one is served to {task}; remove --compile")
    if config.world_size > 1 or config.device != "cpu":
        what = f"{config.world_size} shards" if config.world_size > 1 else f"--device {config.device}"
        raise ModelError(f"--compile needs one shard on --device cpu, not {what}; remove --compile")


@contextmanager
def _lean_imports(config: ShardConfig) -> Iterator[None]:
    """Makes PyTorch and Transformers import less, where the model is neither split nor compiled."""
    # A model's own code may use anything.
    if config.world_size > 1 or config.compile or config.trust_remote_code:
        yield
        return
    from gridwork_server.startup import deferred_imports
    from gridwork_server.startup.import_structure import cached_structure

    names = deferred_imports.ON_ONE_RANK + (deferred_imports.ON_CPU if config.device == "cpu" else ())
    with deferred_imports.deferring(names), cached_structure():
        yield


def end_process(message: str) -> None:
    """Ends the process at once, with a reason for the user. Its threads may be in the middle of anything."""
    logs.fatal(message)
    os._exit(1)
