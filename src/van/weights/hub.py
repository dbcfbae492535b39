"""Pretrained weights for ``timm.create_model(..., pretrained=True)``: which file, from where, read safely.

timm by itself checks no hash, compares no tensor names once the classifier is replaced, and takes the preprocessing
and the number of classes from a table. Here the file is opened like every other weights file of this package, and its
own preprocessing, class count and eps replace the table's.
"""

import contextlib
import dataclasses
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
from van.preprocess import CenterCropPreprocess
from van.weights.formats import Weights, check_state_dict, convert_weights, read_weights, replaced_classifier_note
from van.weights.published import LICENSE_NOTE, VARIANTS

_logger = logging.getLogger(__name__)
_logged: set[str] = set()
_collected: ContextVar[list[str] | None] = ContextVar("van_hub_notes", default=None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretrained:
    """Weights that were read, and ``origin``, the file or repository that they came from."""

    weights: Weights
    origin: str

    def builder_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return keyword arguments for timm's builder: those ``given``, and for all others the file's values."""
        weights = self.weights
        rule: Any = weights.preprocess  # of a classifier
        configured = given.get("pretrained_cfg")
        explicit = configured if isinstance(configured, Mapping) else {}
        from_file = {
            "input_size": (weights.in_chans, rule.image_size, rule.image_size),
            "pool_size": (-(-rule.image_size // 32),) * 2,
            "crop_pct": rule.crop_fraction,
            "interpolation": rule.interpolation,
            "mean": rule.mean,
            "std": rule.std,
            **({"num_classes": weights.num_classes} if weights.num_classes else {}),
        }
        overlay = {
            **{name: value for name, value in from_file.items() if name not in explicit},
            **(given.get("pretrained_cfg_overlay") or {}),
            # a placeholder: the tensors come from ``matching_state_dict``, because timm would copy them twice
            "state_dict": {"read from": self.origin},
        }
        return {"norm_eps": weights.norm_eps, **given, "pretrained_cfg_overlay": overlay}

    def matching_state_dict(self, model: nn.Module, *, features_only: bool = False) -> dict[str, Tensor]:
        """Return the tensors for ``model`` after a check of names and shapes; timm adapts the input and drops the head.

        Raises:
            StateDictMismatch: a tensor outside a replaced classifier is missing, unexpected or of another shape.
        """
        expected, stored = dict(model.state_dict()), dict(self.weights.state)
        num_classes, stored_classes = getattr(model, "num_classes", 0), self.weights.num_classes
        new_head = num_classes != getattr(model, "pretrained_cfg", {}).get("num_classes")
        if new_head and stored_classes and not features_only:
            _add_note(replaced_classifier_note(self.origin, stored_classes, num_classes))
        skipped = ("head.",) if features_only or new_head else ()
        if getattr(model, "in_chans", None) != self.weights.in_chans:
            skipped = (*skipped, "patch_embed1.proj.weight")
        compared = (
            {name: tensor for name, tensor in tensors.items() if not name.startswith(skipped)}
            for tensors in (expected, stored)
        )
        check_state_dict(*compared, source=self.origin)
        return stored


def resolve_pretrained(name: str, given: Mapping[str, Any]) -> Pretrained | None:
    """Read the weights that ``timm.create_model(name, pretrained=True, **given)`` requests.

    Returns:
        None if timm must read them itself: for ``hf-hub:`` and ``local-dir:`` names, and for a url.

    Raises:
        HubError: there are no public weights of this size on the hub, or the download failed.
        CheckpointError: the file cannot be used.
    """
    config = resolve_pretrained_cfg(name, given.get("pretrained_cfg"), given.get("pretrained_cfg_overlay"))
    if config.source:
        return None
    if config.state_dict:
        return Pretrained(weights=convert_weights(config.state_dict, model=name), origin="the given state_dict")
    if config.file:
        return Pretrained(weights=_read(Path(config.file), name), origin=config.file)
    if config.hf_hub_id and config.hf_hub_filename:
        return _download(name, config, given.get("cache_dir"))
    if config.hf_hub_id or config.url:
        return None
    raise HubError(
        f"{name}: no weights on the hub. Download them from {VARIANTS[name].weights}, and give the path of the file "
        "instead of the name (to timm.create_model: pretrained_cfg_overlay=dict(file=...))"
    )


@contextlib.contextmanager
def collect_notes() -> Generator[list[str], None, None]:
    """Collect notes for the user within the block, instead of logging each once per process."""
    notes: list[str] = []
    token = _collected.set(notes)
    try:
        yield notes
    finally:
        _collected.reset(token)


def _download(name: str, config: PretrainedCfg, cache_dir: Any) -> Pretrained:
    origin = f"{config.hf_hub_id}/{config.hf_hub_filename}"
    try:
        path = Path(download_from_hf(str(config.hf_hub_id), str(config.hf_hub_filename), cache_dir=cache_dir))
    except Exception as error:  # errors of the hub, the transport and the disk have no common base class
        if isinstance(error, RepositoryNotFoundError):
            reason = "the repository does not exist or is private"
        elif isinstance(error, LocalEntryNotFoundError) and constants.HF_HUB_OFFLINE:
            reason = "HF_HUB_OFFLINE is set, and the file is not in the local cache"
        elif isinstance(error, LocalEntryNotFoundError):
            reason = f"{constants.ENDPOINT} does not respond, and the file is not in the local cache"
        elif isinstance(error, EntryNotFoundError):
            reason = "the repository has no such file"
        else:
            reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise HubError(
            f"{name}: cannot download {origin}: {reason.rstrip('.')}. Check the connection, "
            "or download the file by other means and give its path instead of the name "
            "(to timm.create_model: pretrained_cfg_overlay=dict(file=...))"
        ) from error
    try:
        weights = _read(path, name)
    except TruncatedFile as error:
        raise TruncatedFile(f"{error}; delete it first, because the hub would use the cached file again") from error
    _add_note(LICENSE_NOTE)
    return Pretrained(weights=weights, origin=origin)


def _read(path: Path, name: str) -> Weights:
    if not is_checkpoint(path):
        return read_weights(path, model=name)
    checkpoint = load_checkpoint(path)
    weights = convert_weights(checkpoint.state, model=name)
    norm_eps = checkpoint.model_options.get("norm_eps", weights.norm_eps)
    rule = checkpoint.preprocess if isinstance(checkpoint.preprocess, CenterCropPreprocess) else weights.preprocess
    return dataclasses.replace(weights, preprocess=rule, norm_eps=norm_eps)


def _add_note(note: str) -> None:
    """Collect a note within ``collect_notes``, otherwise log it, once per process."""
    collected = _collected.get()
    if collected is not None:
        collected.append(note)
    elif note not in _logged:
        _logged.add(note)
        _logger.warning(note)
