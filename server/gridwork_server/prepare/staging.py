"""Builds folders that are either complete or absent."""

import contextlib
import fcntl
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from loguru import logger

from gridwork_server.prepare.errors import PrepareError


def build_folder(target: Path, is_complete: Callable[[Path], bool], build: Callable[[Path], None]) -> Path:
    """Makes a folder by calling `build` with an empty one beside it, which is renamed to `target` when it is done.

    One process at a time builds a target; others wait for it. A killed build leaves only a folder that the next build
    removes. A complete target is left alone. Raises PrepareError when the target has other content, or cannot be
    written.
    """
    if is_complete(target):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.with_name(f".{target.name}.lock")):
            if is_complete(target):
                return target
            if target.exists() and (not target.is_dir() or any(target.iterdir())):
                raise PrepareError(
                    f"{target} exists and does not hold a complete model; remove it, or name another folder"
                )
            prefix = f".{target.name}.partial-"
            for leftover in target.parent.glob(f"{prefix}*"):
                logger.info(f"removing {leftover}, left by an interrupted run")
                shutil.rmtree(leftover)
            _build_beside(target, target.with_name(f"{prefix}{os.getpid()}"), build)
    except OSError as error:
        raise PrepareError(f"cannot write {target}: {error}; free space there, or name another folder") from error
    return target


def make_folder(target: Path, build: Callable[[Path], None]) -> None:
    """Makes a folder that a user named: it must be absent or empty, and nothing else is left beside it.

    `build` gets an empty folder beside the target, which is renamed when it is done. A killed process leaves that one,
    hidden, and the next call for the same target removes it. Raises PrepareError.
    """
    check_absent(target)
    prefix = f".{target.name}.new-"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for leftover in [path for path in target.parent.iterdir() if path.name.startswith(prefix)]:
            with _held(leftover) as is_free:
                if is_free:
                    logger.info(f"removing {leftover}, left by an interrupted run")
                    shutil.rmtree(leftover)
        _build_beside(target, target.with_name(f"{prefix}{secrets.token_hex(4)}"), build)
    except OSError as error:
        raise PrepareError(f"cannot write {target}: {error}; free space there, or name another folder") from error


def check_absent(target: Path) -> None:
    """Raises PrepareError unless a path is free or an empty folder."""
    if target.is_symlink() or (target.exists() and not (target.is_dir() and not any(target.iterdir()))):
        raise PrepareError(f"{target} exists and is not an empty folder; remove it, or name another folder")


def _build_beside(target: Path, partial: Path, build: Callable[[Path], None]) -> None:
    partial.mkdir()
    try:
        with _held(partial) as is_held:
            if not is_held:
                raise PrepareError(f"another process is making {target}; try again when it has ended")
            build(partial)
            _settle(partial)
            partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """Holds a lock on a folder, which the kernel releases however the process ends; gives False where another process
    holds it, or has removed the folder."""
    with contextlib.ExitStack() as stack:
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_free = True
        except (BlockingIOError, FileNotFoundError):
            is_free = False
        yield is_free


def files_key(settings: str, files: Iterable[Path]) -> str:
    """16 hexadecimal digits that change with the settings, and with the path, size or modification time of a file."""
    digest = hashlib.sha256(settings.encode())
    for file in sorted(files):
        if file.is_file():
            stat = file.stat()
            digest.update(f"\0{file.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on a file, which the kernel releases however the process ends."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("waiting for another process that is preparing the same model")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _settle(folder: Path) -> None:
    """Makes files readable for everyone, and writes them to disk before the folder gets its name."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(path.stat().st_mode | 0o444)
            with path.open("rb") as file:
                os.fsync(file.fileno())


def check_space(partial: Path, needed_bytes: int, needs: str) -> None:
    """Raises PrepareError when the disk of a partial folder lacks the space. needs: start of the message."""
    free_bytes = shutil.disk_usage(partial).free
    if needed_bytes > free_bytes:
        raise PrepareError(
            f"{needs}, but {partial.parent} has only {megabytes(free_bytes)} free; free some space, or name another "
            "folder"
        )


def megabytes(count: int) -> str:
    """A number of bytes for messages."""
    return f"{count / 1e6:.0f} MB"
