"""Lazy registration of VAN with timm, without importing timm.

timm registers a model when the module that defines it is imported, and that module needs timm and torch, which take
seconds to import. So a finder on ``sys.meta_path`` waits for ``import timm``, lets it happen, imports
``van.backbones.timm_models`` after it, and removes itself. Merely checking for timm (``importlib.util.find_spec``,
as many libraries do) leaves the finder in place.
"""

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

_MODEL_MODULE = "van.backbones.timm_models"


def register_with_timm() -> None:
    """Register van_b0 ... van_b6 with timm: now if timm is imported, else as soon as it is."""
    if "timm" in sys.modules:
        importlib.import_module(_MODEL_MODULE)
    elif not any(isinstance(finder, _TimmFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _TimmFinder())


class _TimmFinder(importlib.abc.MetaPathFinder):
    """A finder that handles the import of timm and no other."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "timm":
            return None
        finders = list(sys.meta_path)
        others = finders[finders.index(self) + 1 :] if self in finders else finders
        for finder in others:
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _TimmLoader(spec.loader)
                return spec
        return None


class _TimmLoader(importlib.abc.Loader):
    """A loader that loads timm with timm's own loader, then imports VAN."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)  # get_data, get_source, ...: whatever timm's own loader has

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = module.__loader__ = self.loader  # timm must not see this wrapper
        self.loader.exec_module(module)
        sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _TimmFinder)]
        importlib.import_module(_MODEL_MODULE)
