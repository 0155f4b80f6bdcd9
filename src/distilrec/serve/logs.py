"""Structured logs: one JSON object per line on standard error. No user ids, no bodies, no exception
texts of strangers.
"""

from __future__ import annotations

import logging
import sys
import time
import traceback
from typing import Any

import msgspec


class JsonLines(logging.Formatter):
    """`log(logger, event, **facts)` as one line."""

    def format(self, record: logging.LogRecord) -> str:
        facts: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info and record.exc_info[0]:
            facts |= _where(record.exc_info)
        return msgspec.json.encode(facts, enc_hook=str).decode()


def _where(exc_info: Any) -> dict[str, object]:
    """Return type and line of an exception. Its text could hold what a user sent."""
    frames = traceback.extract_tb(exc_info[2])
    return {
        "exception": exc_info[0].__name__,
        "at": [
            f"{frame.filename.rsplit('/distilrec/', 1)[-1]}:{frame.lineno} {frame.name}"
            for frame in frames[-8:]
        ],
    }


def start_logging() -> None:
    """Send the logs of distilrec and of the server below it to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name in ("distilrec", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(logging.INFO)


def log(
    event: str,
    level: int = logging.INFO,
    *,
    exception: BaseException | None = None,
    **facts: object,
) -> None:
    """Write one line."""
    logging.getLogger("distilrec").log(level, event, extra={"facts": facts}, exc_info=exception)
