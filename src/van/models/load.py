"""Model loading from any source: a checkpoint of this package, a public weights file, or a timm model name.

A network whose ``model_options`` hold ``head`` is created with that head, and has its VAN under ``backbone``.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import ImageNetInfo
from torch import nn

from van.checkpoint import Checkpoint, is_checkpoint, load_checkpoint
from van.errors import CheckpointError, HubError, MissingExtra, UnknownFormat, UsageError, VanError
from van.models.ade20k import ADE20K_LABELS
from van.models.build import create_model, unknown_model_message
from van.models.hub import collect_notes
from van.models.registry import HEADS, LICENSE_NOTE
from van.models.van import VAN
from van.models.weights import (
    Weights,
    convert_segmenter,
    load_state_dict_strict,
    read_weights,
    replaced_classifier_note,
)
from van.preprocess import CenterCropPreprocess, ResizePreprocess


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A network in evaluation mode, with its task, class names and preprocessing.

    Args:
        model: the network.
        name: the timm model name.
        options: the model's keyword arguments beside ``num_classes``.
        task: ``classify``, ``detect``, ``instances``, ``segment`` or ``panoptic``.
        class_names: in the order of the outputs.
        preprocess: the conversion from an image to a tensor.
        task_options: plain values from which, with the class names, the task is rebuilt.
        notes: messages for the user, such as where the weights came from and what was skipped.
        new_head: the classifier is untrained, because another number of classes was requested.
        recipe, metrics, origin: of a checkpoint: its training settings, its validation metrics, its source.
    """

    model: nn.Module
    name: str
    options: Mapping[str, Any]
    task: str
    class_names: tuple[str, ...]
    preprocess: CenterCropPreprocess | ResizePreprocess
    task_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    new_head: bool = False
    recipe: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    origin: str = ""

    def check_can_predict(self) -> None:
        """Check that the network can make predictions for its task.

        Raises:
            UsageError: it has no classes or no head for its task, or its input is not RGB.
        """
        if self.task == "classify":
            self.check_is_classifier()
        elif HEADS.get(self.options.get("head", "")) != self.task:
            known = [head for head, task in HEADS.items() if task == self.task]
            raise UsageError(
                f"{self.name}: task {self.task!r} needs a head ({', '.join(known)}), "
                f"got {self.options.get('head', 'none')!r}"
            )
        elif not self.class_names:
            raise UsageError(f"{self.name}: expected at least 1 class for task {self.task!r}, got 0; train it first")

    def check_is_classifier(self) -> None:
        """Check that the network can classify images.

        Raises:
            UsageError: it has another task or no classes, or its input is not RGB.
        """
        if self.task != "classify":
            raise UsageError(f"{self.name}: expected a network for task 'classify', got task {self.task!r}")
        if not self.class_names:
            raise UsageError(
                f"{self.name}: expected a classifier, got a backbone without classes; train a classifier first"
            )
        channels = self.options.get("in_chans", 3)
        if channels != 3:
            raise UsageError(f"{self.name}: expected a network for RGB images (3 channels), got {channels} channels")


def load(
    source: str | Path,
    *,
    num_classes: int | None = None,
    options: Mapping[str, Any] | None = None,
    backbone_only: bool = False,
) -> LoadedModel:
    """Load a network from a file, or by name with its public weights.

    Args:
        source: a path of a checkpoint or of any public VAN file, or a timm model name such as ``van_b2``;
            a unique prefix of a name, such as ``swin_tiny``, is enough.
        num_classes: number of classes. None keeps the stored classifier; another number than the stored one replaces
            it by an untrained one; 0 removes it, and the head, so that the backbone remains.
        options: further keyword arguments of the model, such as ``drop_path_rate``.
        backbone_only: create a classification network from the backbone, whatever head the file holds.

    Raises:
        CheckpointError: the file cannot be used.
        HubError: the weights of that name cannot be downloaded.
        UsageError: ``source`` is neither a file nor a model, or its number of classes cannot change.
    """
    path = Path(source)
    extra = dict(options or {})
    name = resolve_model_name(str(source))
    # a folder may have the full name of a model, but only a file takes precedence over it
    if name is not None and not (path.is_file() if name == str(source) else path.exists()):
        return _load_by_name(name, num_classes, extra)
    if path.exists() or path.suffix or len(path.parts) > 1:
        load_file = _load_checkpoint if is_checkpoint(path) else _load_public_file
        return load_file(path, num_classes, extra, backbone_only=backbone_only or num_classes == 0)
    raise UsageError(unknown_model_message(str(source)))


def resolve_model_name(name: str) -> str | None:
    """Return the timm model of that name, or the only one that it is a prefix of (``swin_tiny``); otherwise None."""
    if timm.is_model(name):
        return name
    longer = timm.list_models(f"{name}_*") if re.fullmatch(r"[a-z0-9_]+", name) else []
    return longer[0] if len(longer) == 1 else None


def load_backbone_weights(network: nn.Module, source: "str | Path | LoadedModel") -> LoadedModel:
    """Load the backbone of any VAN network into a network with a head, strictly.

    The eps of LayerNorm is not a weight: ``network`` keeps its own.

    Args:
        network: a network with a VAN under ``backbone``.
        source: as for ``load``, or its result; its classifier or head is skipped.

    Returns:
        The loaded source; its notes name the origin, what was skipped, and a different eps.

    Raises:
        StateDictMismatch: a tensor outside the classifier does not match; all are listed, and nothing was changed.
        CheckpointError, HubError, UsageError: as for ``load``; or the network has no VAN under ``backbone``.
    """
    backbone = getattr(network, "backbone", None)
    if not isinstance(backbone, VAN):
        raise UsageError(f"network: expected a VAN under 'backbone', got a {type(network).__name__} without one")
    loaded = source if isinstance(source, LoadedModel) else load(source, num_classes=0)
    source_name = loaded.name if isinstance(source, LoadedModel) else str(source)
    notes = [*loaded.notes, *load_state_dict_strict(backbone, loaded.model.state_dict(), source=source_name)]
    own_eps, source_eps = _norm_eps(backbone), _norm_eps(loaded.model)
    if own_eps != source_eps:
        notes.append(f"LayerNorm eps: {source_name} has {source_eps:g}, the network keeps {own_eps:g}")
    return dataclasses.replace(loaded, notes=tuple(notes))


def to_channels_last(model: nn.Module, device: torch.device) -> nn.Module:
    """Move the model to ``device`` with its 4-d weights in channels_last, the faster layout for convolutions."""
    model.to(device)
    return model.to(memory_format=torch.channels_last)  # pyrefly: ignore[no-matching-overload]


def resolve_device(device: str | torch.device | None) -> torch.device:
    """Return the device of that name; for None or ``auto`` the GPU if PyTorch has one, else the CPU.

    Raises:
        UsageError: the name is no device, or PyTorch cannot use it on this machine.
    """
    present = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    present += ["mps"] if torch.backends.mps.is_available() else []
    if device in (None, "auto"):
        return torch.device(present[1] if "cuda" in present else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"device: expected auto, cpu, cuda or mps, got {device!r}") from error
    if chosen.type not in present or (chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count()):
        raise UsageError(f"device: expected one that PyTorch can use here ({', '.join(present)}), got {str(device)!r}")
    return chosen


def imagenet_class_names(num_classes: int) -> tuple[str, ...]:
    """Return ImageNet-1K's class names for 1,000 classes, numbered names for any other count."""
    if num_classes == 1000:
        info = ImageNetInfo()
        return tuple(info.index_to_description(index) for index in range(num_classes))
    return numbered_class_names(num_classes)


def numbered_class_names(num_classes: int) -> tuple[str, ...]:
    """Return placeholder class names: ``class 0``, ``class 1``, ..."""
    return tuple(f"class {index}" for index in range(num_classes))


def _load_checkpoint(
    path: Path, num_classes: int | None, options: dict[str, Any], *, backbone_only: bool
) -> LoadedModel:
    checkpoint = load_checkpoint(path)
    if backbone_only and "head" in checkpoint.model_options:
        return _load_checkpoint_backbone(path, checkpoint, num_classes or 0, options)
    stored = len(checkpoint.class_names)
    expected = stored if num_classes is None else num_classes
    merged = {**checkpoint.model_options, **options}
    model = _create_stored_model(path, checkpoint.model, expected, merged)
    new_head = num_classes is not None and num_classes != stored
    layers = _class_layers(model)
    if new_head and not layers:
        raise UsageError(
            f"num_classes: expected {stored} as in {path}, because the classes of this head cannot change, "
            f"got {expected}; create a new network and load its backbone from the file"
        )
    notes = load_state_dict_strict(
        model, checkpoint.state, source=str(path), classifier=layers, new_head=new_head, stored_classes=stored
    )
    default_names = numbered_class_names if "head" in merged else imagenet_class_names
    return LoadedModel(
        model=model.eval(),
        name=checkpoint.model,
        options=merged,
        task=checkpoint.task,
        class_names=default_names(expected) if new_head else checkpoint.class_names,
        preprocess=checkpoint.preprocess,
        task_options={} if new_head else checkpoint.task_options,
        notes=notes,
        new_head=new_head,
        recipe=checkpoint.recipe,
        metrics={} if new_head else checkpoint.metrics,
        origin=checkpoint.source,
    )


def _create_stored_model(path: Path, name: str, num_classes: int, options: Mapping[str, Any]) -> nn.Module:
    """Create the network that a checkpoint's header describes."""
    try:
        return create_model(name, num_classes=num_classes, options=options)
    except MissingExtra:  # the file is valid, the installation lacks a package
        raise
    except UsageError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _load_checkpoint_backbone(
    path: Path, checkpoint: Checkpoint, num_classes: int, options: dict[str, Any]
) -> LoadedModel:
    """Load a checkpoint with a head as a classification network; the whole network is loaded first, to check it."""
    whole: Any = _create_stored_model(path, checkpoint.model, len(checkpoint.class_names), checkpoint.model_options)
    load_state_dict_strict(whole, checkpoint.state, source=str(path))
    state, eps, channels = whole.backbone.state_dict(), _norm_eps(whole.backbone), whole.backbone.in_chans
    merged = {**_stored_options(eps, channels), **options}
    model = create_model(checkpoint.model, num_classes=num_classes, options=merged)
    load_state_dict_strict(model, state, source=str(path), new_head=True)
    rule = checkpoint.preprocess
    return LoadedModel(
        model=model.eval(),
        name=checkpoint.model,
        options=merged,
        task="classify",
        class_names=imagenet_class_names(num_classes),
        preprocess=CenterCropPreprocess(interpolation=rule.interpolation, mean=rule.mean, std=rule.std),
        notes=(f"skipped the head of {path} ({checkpoint.model_options['head']}): only the backbone is loaded",),
        new_head=True,
        recipe=checkpoint.recipe,
        origin=checkpoint.source,
    )


def _load_public_file(
    path: Path, num_classes: int | None, options: dict[str, Any], *, backbone_only: bool
) -> LoadedModel:
    weights = read_weights(path)
    origin_note = f"{path.name}: {weights.family} weights of {weights.model}. {LICENSE_NOTE}"
    stored = _stored_options(weights.norm_eps, weights.in_chans)
    if weights.decoder and not backbone_only:
        return _load_public_segmenter(path, weights, num_classes, {**stored, **options}, origin_note)
    expected = weights.num_classes if num_classes is None else num_classes
    merged = {**stored, **options}
    model = create_model(weights.model, num_classes=expected, options=merged)
    new_head = num_classes is not None and num_classes != weights.num_classes
    notes = load_state_dict_strict(model, weights.state, source=str(path), new_head=new_head)
    decoder_notes = [weights.skipped_decoder_note] if weights.decoder else []
    return LoadedModel(
        model=model.eval(),
        name=weights.model,
        options=merged,
        task="classify",
        class_names=imagenet_class_names(expected),
        preprocess=weights.preprocess,
        notes=(origin_note, *weights.notes, *decoder_notes, *notes),
        new_head=new_head,
    )


def _load_public_segmenter(
    path: Path, weights: Weights, num_classes: int | None, options: dict[str, Any], origin_note: str
) -> LoadedModel:
    try:
        segmenter = convert_segmenter(weights)
    except UnknownFormat as error:
        raise UnknownFormat(f"{path}: {error}") from error
    expected = segmenter.num_classes if num_classes is None else num_classes
    merged = {"head": segmenter.head, **options}
    model = create_model(weights.model, num_classes=expected, options=merged)
    new_head = expected != segmenter.num_classes
    notes = load_state_dict_strict(
        model, segmenter.state, source=str(path), classifier=_class_layers(model), new_head=new_head
    )
    return LoadedModel(
        model=model.eval(),
        name=weights.model,
        options=merged,
        task=HEADS[segmenter.head],
        class_names=ADE20K_LABELS if expected == len(ADE20K_LABELS) else numbered_class_names(expected),
        preprocess=segmenter.preprocess,
        notes=(origin_note, *segmenter.notes, *notes),
        new_head=new_head,
    )


def _load_by_name(name: str, num_classes: int | None, options: dict[str, Any]) -> LoadedModel:
    classes: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    try:
        with collect_notes() as hub_notes:
            model: Any = timm.create_model(name, pretrained=True, **classes, **options)
    except VanError:
        raise
    except TypeError as error:
        raise UsageError(f"{name}: cannot create the model with the options {options}: {error}") from error
    except Exception as error:  # timm and the hub raise many types of their own
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise HubError(
            f"{name}: cannot download the weights: {reason.rstrip('.')}. "
            "Check the connection, or give the path of a weights file."
        ) from error
    config = model.pretrained_cfg
    notes = [f"weights of {name} from {config.get('hf_hub_id') or config.get('url') or 'the hub'}.", *hub_notes]
    new_head = num_classes is not None and num_classes != config.get("num_classes")
    if new_head and not hub_notes:  # for VAN models the hub notes include it
        notes.append(replaced_classifier_note(name, config.get("num_classes"), num_classes))
    return LoadedModel(
        model=model.eval(),
        name=name,
        options=options,
        task="classify",
        class_names=imagenet_class_names(model.num_classes),
        preprocess=CenterCropPreprocess.from_timm(config),
        notes=tuple(notes),
        new_head=new_head,
    )


def _stored_options(norm_eps: float, in_chans: int) -> dict[str, Any]:
    """Return the options of a VAN that differ from the defaults and cannot be inferred from the tensor names."""
    return {**({"norm_eps": norm_eps} if norm_eps != 1e-6 else {}), **({"in_chans": in_chans} if in_chans != 3 else {})}


def _norm_eps(model: nn.Module) -> float:
    network: Any = model
    return network.norm1.eps


def _class_layers(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the layers whose size depends on the number of classes; none if the head has no such list."""
    if hasattr(model, "backbone") and not hasattr(model, "pretrained_cfg"):
        return getattr(model, "class_layers", ())
    name = getattr(model, "pretrained_cfg", {}).get("classifier") or "head"
    return (name,) if isinstance(name, str) else (name[0],)
