"""What ``pretrained=True`` means: which file, fetched from where, read safely.

timm would open a file by itself, but it checks no hash, compares no names once the classifier is
another, and takes the preprocessing and the number of classes from a table. Here the file says them:
it is opened like every other weights file of this package, and what it carries goes with its tensors.
"""

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Generator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from huggingface_hub import constants
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError
from timm.models import PretrainedCfg, resolve_pretrained_cfg
from timm.models._hub import download_from_hf
from torch import Tensor, nn

from van.checkpoint import is_checkpoint, load_checkpoint
from van.errors import HubError, TruncatedFile
from van.models.catalogue import LICENSE_NOTE, VARIANTS
from van.models.weights import Weights, check_fit, official_state, read_weights
from van.preprocess import Preprocess

_logger = logging.getLogger(__name__)
_collected: ContextVar[list[str] | None] = ContextVar("van_hub_notes", default=None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretrained:
    """Weights that were read, and ``place``: where they came from, in words."""

    weights: Weights
    place: str

    def options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments for timm's builder: those ``given``, and what the file says where nothing was given."""
        weights, rule = self.weights, self.weights.preprocess
        configured = given.get("pretrained_cfg")
        stated = configured if isinstance(configured, Mapping) else {}
        told = {
            "input_size": (weights.in_chans, rule.size_px, rule.size_px),
            "pool_size": (-(-rule.size_px // 32),) * 2,
            "crop_pct": rule.crop_fraction,
            "interpolation": rule.interpolation,
            "mean": rule.mean,
            "std": rule.std,
            **({"num_classes": weights.num_classes} if weights.num_classes else {}),
        }
        overlay = {
            **{name: value for name, value in told.items() if name not in stated},
            **(given.get("pretrained_cfg_overlay") or {}),
            "state_dict": {"read from": self.place},  # the tensors come from ``fit``: timm would copy them twice
        }
        return {"norm_eps": weights.norm_eps, **given, "pretrained_cfg_overlay": overlay}

    def fit(self, model: nn.Module, *, features_only: bool = False) -> dict[str, Tensor]:
        """The tensors for ``model``, compared entry for entry; timm then adapts the input and drops the head.

        Raises:
            NamesMismatch: something beside a replaced classifier does not fit.
        """
        ours, theirs = dict(model.state_dict()), dict(self.weights.state)
        wanted, stored = getattr(model, "num_classes", 0), self.weights.num_classes
        other_classes = wanted != getattr(model, "pretrained_cfg", {}).get("num_classes")
        if other_classes and stored and not features_only:
            _tell(f"the classifier of {self.place} ({stored} classes) was left out: {wanted} were asked for")
        apart = [name for name in {**ours, **theirs} if (features_only or other_classes) and name.startswith("head.")]
        if getattr(model, "in_chans", None) != self.weights.in_chans:
            apart.append("patch_embed1.proj.weight")
        check_fit(_without(ours, apart), _without(theirs, apart), source=self.place)
        return theirs


def find_pretrained(name: str, given: Mapping[str, Any]) -> Pretrained | None:
    """Read the weights that ``timm.create_model(name, pretrained=True, **given)`` asks for.

    Returns:
        None where timm must look by itself: for ``hf-hub:`` and ``local-dir:`` names, and for a url.

    Raises:
        HubError: nothing is published for this size, or the download failed.
        CheckpointError: the file cannot be used.
    """
    config = resolve_pretrained_cfg(name, given.get("pretrained_cfg"), given.get("pretrained_cfg_overlay"))
    if config.source:
        return None
    if config.state_dict:
        place = "the given state_dict"
        return Pretrained(weights=official_state(config.state_dict, model=name), place=place)
    if config.file:
        return Pretrained(weights=_read(Path(config.file), name), place=config.file)
    if config.hf_hub_id and config.hf_hub_filename:
        return _download(name, config, given.get("cache_dir"))
    if config.hf_hub_id or config.url:
        return None
    raise HubError(
        f"{name} has no weights on the hub. Public ones: {VARIANTS[name].weights}; give the file's "
        "path instead of the name (to timm.create_model: pretrained_cfg_overlay=dict(file=...))"
    )


@contextlib.contextmanager
def collect_notes() -> Generator[list[str], None, None]:
    """Within the block, gather what the user should be told instead of logging it (each note once a process)."""
    notes: list[str] = []
    token = _collected.set(notes)
    try:
        yield notes
    finally:
        _collected.reset(token)


def _hub_error(name: str, place: str, error: Exception) -> HubError:
    """A downloader's error in one sentence that says what to do."""
    if isinstance(error, RepositoryNotFoundError):
        reason = "there is no such repository on the hub, or it is private"
    elif isinstance(error, LocalEntryNotFoundError) and constants.HF_HUB_OFFLINE:
        reason = "HF_HUB_OFFLINE is set, and the file is not in the local cache"
    elif isinstance(error, LocalEntryNotFoundError):
        reason = f"{constants.ENDPOINT} does not answer, and the file is not in the local cache"
    elif isinstance(error, EntryNotFoundError):
        reason = "the repository holds no such file"
    else:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return HubError(
        f"cannot download the weights of {name} ({place}): {reason.rstrip('.')}. Check the connection, "
        "or fetch the file elsewhere and give its path instead of the name "
        "(to timm.create_model: pretrained_cfg_overlay=dict(file=...))"
    )


def _download(name: str, config: PretrainedCfg, cache_dir: Any) -> Pretrained:
    place = f"{config.hf_hub_id}/{config.hf_hub_filename}"
    try:
        path = Path(download_from_hf(str(config.hf_hub_id), str(config.hf_hub_filename), cache_dir=cache_dir))
    except Exception as error:  # the hub's, the transport's and the disk's errors share no root
        raise _hub_error(name, place, error) from error
    try:
        weights = _read(path, name)
    except TruncatedFile as error:
        raise TruncatedFile(f"{error}; delete it first, or the hub takes it from there again") from error
    _tell(LICENSE_NOTE)
    return Pretrained(weights=weights, place=place)


def _read(path: Path, name: str) -> Weights:
    if not is_checkpoint(path):
        return read_weights(path, model=name)
    ours = load_checkpoint(path)
    weights = official_state(ours.state, model=name)
    norm_eps = ours.model_options.get("norm_eps", weights.norm_eps)
    rule = ours.preprocess if isinstance(ours.preprocess, Preprocess) else weights.preprocess
    return dataclasses.replace(weights, preprocess=rule, norm_eps=norm_eps)


def _tell(note: str) -> None:
    collected = _collected.get()
    if collected is None:
        _warn_once(note)
    else:
        collected.append(note)


@functools.cache
def _warn_once(note: str) -> None:
    _logger.warning(note)


def _without(tensors: Mapping[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name not in names}
