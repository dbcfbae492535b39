"""Modules that can be called like a function: ``van.explain`` is a package, and the verb of the same name.

A package attribute is set when a submodule is imported, so a function of that name would be replaced by the package at
an import that the user does not see. So the module itself is callable, and everything else about it is as usual.
"""

import importlib
import sys
import types
from collections.abc import Callable
from typing import Any


class CallableModule(types.ModuleType):
    """A module that calls the function of its own name in ``van.api``; ``inspect.signature`` shows that function's."""

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        return getattr(importlib.import_module("van.api"), self.__name__.rpartition(".")[2])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return self.__wrapped__(*args, **kwargs)


def make_callable(name: str) -> None:
    """Make the imported module of that name callable."""
    sys.modules[name].__class__ = CallableModule
