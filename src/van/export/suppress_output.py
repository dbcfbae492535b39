"""Imports the packages of ``[export]`` without telemetry, and silences their logs.

ONNX Runtime and OpenVINO report usage as soon as they are imported (observed in onnxruntime 1.31 and openvino 2026.4),
and NNCF does so through OpenVINO's package; telemetry is switched off before the import.
"""

import contextlib
import importlib
import logging
import os
import sys
from collections.abc import Generator
from types import ModuleType

from van.errors import MissingExtra


def import_without_telemetry(name: str, *, purpose: str = "an exported network") -> ModuleType:
    """Import onnx, onnxscript, onnxruntime, openvino or nncf with their telemetry switched off.

    ONNX Runtime reads ``ORT_DISABLE_TELEMETRY`` once, when it is loaded. OpenVINO and NNCF send nothing where the
    package ``openvino_telemetry`` is not installed, so its import is blocked.

    Args:
        name: the package, or a module in it.
        purpose: what the package is needed for; part of the error message.

    Raises:
        MissingExtra: the package is not installed.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    sys.modules.setdefault("openvino_telemetry", None)  # pyrefly: ignore  # None blocks an import
    package = name.partition(".")[0]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise MissingExtra(package, "export", purpose) from error


@contextlib.contextmanager
def suppress_log(name: str, *, level: int = logging.ERROR) -> Generator[None, None, None]:
    """Suppress a package's log records below ``level`` until the block ends."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
