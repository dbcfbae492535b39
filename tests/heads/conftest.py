"""Registration of the toy head for the tests that ask for it, and not beyond."""

import importlib
import sys
from collections.abc import Iterator

import pytest

from van.heads import HEADS


@pytest.fixture
def toy() -> Iterator[None]:
    """Register the head ``toy`` by importing its module."""
    importlib.import_module("heads.toy_head")
    yield
    del HEADS._entries["toy"], sys.modules["heads.toy_head"]
