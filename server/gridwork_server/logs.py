"""Logs as one JSON object a line on stderr, which the launcher reads, tags and shows."""

import json
import logging
import sys
import warnings
from typing import TYPE_CHECKING

from loguru import logger

if TYPE_CHECKING:
    from loguru import Message

_LEVELS = {"WARNING": "WARN", "CRITICAL": "ERROR", "SUCCESS": "INFO"}


def set_up(level: str) -> None:
    """Sends loguru, the standard library's logging and warnings to stderr. level: as in LOG_LEVEL, any case."""
    level = {"warn": "WARNING"}.get(level.lower(), level.upper())
    logger.remove()
    logger.add(_write, level=level)
    logging.basicConfig(handlers=[_Forward()], level=logging.WARNING, force=True)
    warnings.showwarning = lambda message, category, *_args, **_kwargs: logger.warning(
        f"{category.__name__}: {message}"
    )


def fatal(message: str) -> None:
    """Logs the reason that the process ends for; the caller ends it."""
    logger.opt(depth=1).bind(fatal=True).error(message)


def _write(message: "Message") -> None:
    record = message.record
    extra = dict(record["extra"])
    line: dict[str, object] = {
        "timestamp": record["time"].isoformat(),
        "level": _LEVELS.get(record["level"].name, record["level"].name),
        "target": record["name"],
        "message": record["message"],
        "fields": {},
    }
    if extra.pop("fatal", False):
        line["fatal"] = True
    if record["exception"] is not None:
        line["message"] = str(message).split(" - ", 1)[-1].rstrip("\n")
    line["fields"] = {key: str(value) for key, value in extra.items()}
    # One write, so that lines of several threads do not mix.
    sys.stderr.write(json.dumps(line, ensure_ascii=False) + "\n")
    sys.stderr.flush()


class _Forward(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        name = record.levelname if record.levelname in ("DEBUG", "INFO", "WARNING", "ERROR") else "WARNING"
        logger.opt(exception=record.exc_info).log(name, "{}", record.getMessage())
