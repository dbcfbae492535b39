"""Start of the server for given models: its packages, settings, API key and model files."""

import dataclasses
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from van.errors import MissingExtra, UsageError
from van.serving.settings import Limits, Settings, check_key

if TYPE_CHECKING:
    from van.model import Model  # not imported here: the front does without PyTorch

_LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")


def launch(models: "Sequence[Model | str | Path]", options: Mapping[str, Any]) -> int:
    """Serve until a stop signal; return 0 if all accepted requests were finished.

    Args:
        models: the first one is the default; a path or name may be ``NAME=FILE``.
        options: fields of ``Settings`` and ``Limits``.

    Raises:
        MissingExtra: a package of the server is not installed.
        UsageError: an option is wrong, or other machines can reach the host without an API key.
    """
    for package in ("fastapi", "uvicorn", "prometheus_client", "python_multipart"):
        try:
            __import__(package)
        except ModuleNotFoundError as error:
            if error.name != package:
                raise
            raise MissingExtra(package, "serve", "serving a model") from error
    from van.serving.model_files import parse_sources
    from van.serving.server import serve

    limit_names = {field.name for field in dataclasses.fields(Limits)}
    names = {field.name for field in dataclasses.fields(Settings)} - {"limits"}
    if unknown := set(options) - names - limit_names:
        raise UsageError(f"{min(unknown)}: expected an option of the server: {', '.join(sorted(names | limit_names))}")
    key, variable = options.get("api_key", ""), os.environ.get("VAN_API_KEY", "")
    key = check_key(key, "api_key") if key else check_key(variable, "VAN_API_KEY") if variable else ""
    limits = Limits(**{name: value for name, value in options.items() if name in limit_names})
    given: dict[str, Any] = {name: value for name, value in options.items() if name in names}
    settings = Settings(**(given | {"api_key": key, "limits": limits}))
    if settings.host not in _LOOPBACK_HOSTS and not key:
        raise UsageError(
            f"--host {settings.host}: other machines can reach this address, so it needs an API key; "
            "give --api-key-file or VAN_API_KEY, or use --host 127.0.0.1"
        )
    with tempfile.TemporaryDirectory() as folder:  # the workers load models from files
        return serve(settings, parse_sources(write_models(models, Path(folder))))


def write_models(models: "Sequence[Model | str | Path]", folder: Path) -> list[str]:
    """Return a source for each model; those in memory are written to ``folder``.

    Not the file that a model was loaded from: its network or its class names may have been changed since. An exported
    file cannot be changed.
    """
    sources = []
    for number, model in enumerate(models):
        if not isinstance(model, str | Path):
            path = folder / str(number) / f"{model.name}.safetensors"
            model = model.source if model.is_exported else model.save(path)
        sources.append(str(model))
    return sources
