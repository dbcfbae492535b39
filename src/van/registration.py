"""Registering VAN with timm without importing timm.

timm knows a model once the module that defines it was imported, and that module needs timm and
torch: seconds. So the import waits for timm's own: a finder on ``sys.meta_path`` sees ``import timm``,
lets it happen, imports ``van.models.van`` after it, and is gone. Merely looking for timm
(``importlib.util.find_spec``, as many libraries do) leaves the finder in its place.
"""

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

_MODELS = "van.models.van"


def register_with_timm() -> None:
    """Make timm know van_b0 ... van_b6: now if timm is loaded, else as soon as it is."""
    if "timm" in sys.modules:
        importlib.import_module(_MODELS)
    elif not any(isinstance(finder, _AfterTimm) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterTimm())


class _AfterTimm(importlib.abc.MetaPathFinder):
    """Steps aside for every import but that of timm."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "timm":
            return None
        finders = list(sys.meta_path)
        later = finders[finders.index(self) + 1 :] if self in finders else finders
        for finder in later:
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _ThenVan(spec.loader)
                return spec
        return None


class _ThenVan(importlib.abc.Loader):
    """Loads timm as its own loader would, then VAN."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)  # get_data, get_source, ...: whatever timm's own loader offers

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = module.__loader__ = self.loader  # leave timm as it would be without us
        self.loader.exec_module(module)
        sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _AfterTimm)]
        importlib.import_module(_MODELS)
