"""Logs as one JSON object per line on standard error. They never contain image contents, queries or keys."""

import datetime
import json
import logging
import sys
import traceback
from typing import Any

_STANDARD_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}

_LEVELS = {
    "van.serving": logging.INFO,
    "asyncio": logging.ERROR,
    "uvicorn": logging.ERROR,  # it warns of every malformed request; the client and the metrics have that already
    "python_multipart": logging.CRITICAL,  # it quotes what clients sent
}


class JsonLines(logging.Formatter):
    """Formatter that writes a record as one JSON object: time, level, event and the extra fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the JSON line of a record."""
        time = datetime.datetime.fromtimestamp(record.created, tz=datetime.UTC)
        line: dict[str, Any] = {"time": time.isoformat(timespec="milliseconds"), "level": record.levelname.lower()}
        line["event"] = record.getMessage()
        line |= {key: value for key, value in vars(record).items() if key not in _STANDARD_FIELDS}
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            line["error"] = type(error).__name__  # without its message, which may quote what a client sent
            frames = traceback.extract_tb(error.__traceback__)
            line["traceback"] = [f"{frame.filename}:{frame.lineno}" for frame in frames]
        return json.dumps(line, default=str)


def log_to_stderr() -> None:
    """Send the log records and Python warnings of this process to standard error as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.getLogger().handlers[:] = [handler]
    for name, level in _LEVELS.items():
        logging.getLogger(name).setLevel(level)
    logging.captureWarnings(capture=True)
