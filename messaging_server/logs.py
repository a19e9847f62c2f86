"""Logging: everything goes through loguru, to standard error.

On a terminal it is for people, otherwise one JSON object a line. Never bodies, passwords or
tokens; tracebacks without the values of variables.
"""

import asyncio
import logging
import sys
import traceback
from contextvars import ContextVar
from typing import TYPE_CHECKING

import msgspec
from loguru import logger

from messaging_server.config import LogConfig

if TYPE_CHECKING:
    from loguru import Message, Record

logged_request_id: ContextVar[str] = ContextVar("request_id", default="")
"""Of the request that this task answers; every line that is logged meanwhile carries it."""

_encoder = msgspec.json.Encoder(enc_hook=str)


class InterceptHandler(logging.Handler):
    """Hands the records of the standard library's logging to loguru.

    Not those of requests that a stop has cut off: uvicorn says how many there were.
    """

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info and record.exc_info[1]
        if record.name == "uvicorn.error" and isinstance(error, asyncio.CancelledError):
            return
        level: str | int = record.levelname
        if level not in ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"):
            level = record.levelno
        logger.opt(exception=record.exc_info).bind(logger=record.name).log(
            level, "{}", record.getMessage()
        )


def configure_logging(config: LogConfig) -> None:
    """Replace all handlers, of loguru and of the standard library."""
    logger.remove()
    logger.configure(patcher=_add_request_id)
    pretty = config.format == "pretty" or (config.format == "auto" and sys.stderr.isatty())
    if pretty:
        logger.add(sys.stderr, level=config.level, format=_pretty, diagnose=False, backtrace=False)
    else:
        logger.add(
            _write_json, level=config.level, format="{message}", diagnose=False, backtrace=False
        )
    logging.getLogger("asyncpg.pool").setLevel(
        logging.ERROR
    )  # a traceback for each lost connection
    logging.basicConfig(handlers=[InterceptHandler()], level=logging.WARNING, force=True)


def _add_request_id(record: "Record") -> None:
    request_id = logged_request_id.get()
    if request_id:
        record["extra"]["request_id"] = request_id


def _pretty(record: "Record") -> str:
    extra = " ".join(f"{key}={value}" for key, value in record["extra"].items())
    record["extra"]["_line"] = extra
    return (
        "<dim>{time:HH:mm:ss.SSS}</dim> <level>{level:<7}</level> {message}"
        " <dim>{extra[_line]}</dim>\n{exception}"
    )


def _write_json(message: "Message") -> None:
    record = message.record
    line: dict[str, object] = {
        "time": record["time"].isoformat(timespec="milliseconds"),
        "level": record["level"].name,
        "message": record["message"],
        "module": record["name"],
        **record["extra"],
    }
    error = record["exception"]
    if error is not None:
        line["traceback"] = "".join(
            traceback.format_exception(error.type, error.value, error.traceback)
        )
    sys.stderr.write(_encoder.encode(line).decode() + "\n")
