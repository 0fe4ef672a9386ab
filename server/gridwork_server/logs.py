"""Writes logs to stderr, one JSON object a line. The launcher reads, tags and shows them."""

import json
import logging
import os
import re
import sys
import warnings
from typing import TYPE_CHECKING

from loguru import logger

if TYPE_CHECKING:
    from loguru import Message, Record

_LEVELS = {"WARNING": "WARN", "CRITICAL": "ERROR", "SUCCESS": "INFO"}


# Characters that terminals obey and JSON does not escape by itself. File names and tokens come from others.
_OBEYED = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def _written_out(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


def escaped(text: str) -> str:
    """A text that may come from others, without characters that terminals obey."""
    return _OBEYED.sub(_written_out, text)


def set_up(level: str, plain: bool = False) -> None:
    """Sends loguru, the standard library's logging and warnings to stderr. level: as in LOG_LEVEL, any case. plain:
    lines for a terminal, in place of JSON."""
    level = {"warn": "WARNING"}.get(level.lower(), level.upper())
    logger.remove()
    # Tracebacks omit the values of variables, which may be anything that a client sent.
    logger.add(_write_plain if plain else _write, level=level, backtrace=False, diagnose=False)
    logging.basicConfig(handlers=[_Forward()], level=logging.WARNING, force=True)
    warnings.showwarning = lambda message, category, *_args, **_kwargs: logger.warning(
        f"{category.__name__}: {message}"
    )


def adopt_transformers() -> None:
    """Sends Transformers' warnings to the same log, without its progress bars and its advice to programmers."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.disable_default_handler()
    transformers_logging.enable_propagation()


def fatal(message: str) -> None:
    """Logs the reason for which the process ends. The caller ends it."""
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
    # A single write, so that lines of several threads do not mix.
    sys.stderr.write(escaped(json.dumps(line, ensure_ascii=False)) + "\n")
    sys.stderr.flush()


def _write_plain(message: "Message") -> None:
    record = message.record
    level = "" if record["level"].name == "INFO" else f"{record['level'].name.lower()}: "
    sys.stderr.write(escaped(f"{level}{record['message']}") + "\n")
    sys.stderr.flush()


class _Forward(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        name = record.levelname if record.levelname in ("DEBUG", "INFO", "WARNING", "ERROR") else "WARNING"

        def name_sender(line: "Record") -> None:
            line["name"] = record.name

        logger.patch(name_sender).opt(exception=record.exc_info).log(name, "{}", record.getMessage())
