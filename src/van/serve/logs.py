"""Logs as one JSON object a line, to standard error. What is in a picture, a query or a key is in none of them."""

import datetime
import json
import logging
import sys
import traceback
from typing import Any

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}

_LEVELS = {
    "van.serve": logging.INFO,
    "asyncio": logging.ERROR,
    "uvicorn": logging.ERROR,  # it warns of every request that is none, which clients are told and measures count
    "python_multipart": logging.CRITICAL,  # it quotes what clients sent
}


class JsonLines(logging.Formatter):
    """A record as one line: time, level, event, and what was given with it."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        when = datetime.datetime.fromtimestamp(record.created, tz=datetime.UTC)
        line: dict[str, Any] = {"time": when.isoformat(timespec="milliseconds"), "level": record.levelname.lower()}
        line["event"] = record.getMessage()
        line |= {key: value for key, value in vars(record).items() if key not in _STANDARD}
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            line["error"] = type(error).__name__  # its message may quote what a client sent
            line["where"] = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]
        return json.dumps(line, default=str)


def log_to_stderr() -> None:
    """Send what this process has to say to standard error as JSON lines, Python's warnings among it."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.getLogger().handlers[:] = [handler]
    for name, level in _LEVELS.items():
        logging.getLogger(name).setLevel(level)
    logging.captureWarnings(capture=True)
