"""The packages behind ``[export]``, imported so that they send nothing home.

ONNX Runtime and OpenVINO report usage from the moment they are imported unless told not to (seen in onnxruntime
1.31 and openvino 2026.4), and NNCF does so through OpenVINO's package: here they are told before that.
"""

import contextlib
import importlib
import logging
import os
import sys
from collections.abc import Generator
from types import ModuleType

from van.errors import MissingExtra


def quiet_import(name: str, *, purpose: str = "an exported network") -> ModuleType:
    """Import onnx, onnxscript, onnxruntime, openvino or nncf with their telemetry switched off.

    ONNX Runtime reads ``ORT_DISABLE_TELEMETRY`` once, when it is loaded. OpenVINO and NNCF do without the package
    ``openvino_telemetry`` where there is none, so they are made to find none.

    Args:
        name: of the package, or of a module in it.
        purpose: what needs it, for the error.

    Raises:
        MissingExtra: the package is not installed.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    sys.modules.setdefault("openvino_telemetry", None)  # pyrefly: ignore  # None is how an import is refused
    package = name.partition(".")[0]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise MissingExtra(package, "export", purpose) from error


@contextlib.contextmanager
def quiet_log(name: str, *, level: int = logging.ERROR) -> Generator[None, None, None]:
    """Of a package's own log nothing below ``level``, until the block ends."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
