"""One door to every network: our checkpoint, a public weights file, or a timm model name.

A network with a head (``model_options`` hold ``head``) is built with it, and has its VAN under ``backbone``.
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
from van.models.build import create, unknown
from van.models.catalogue import HEADS, LICENSE_NOTE
from van.models.hub import collect_notes
from van.models.van import VAN
from van.models.weights import Weights, load_strictly, read_weights, segmenter_state
from van.preprocess import Preprocess, WholePreprocess


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loaded:
    """A network ready for use, with what travels with it.

    Args:
        options: the model's keyword arguments beside ``num_classes``.
        task_options: what makes the task again, with the labels.
        notes: what the user should be told: what was left out, where the weights came from.
        new_head: the classifier is a fresh one, because another number of classes was asked for.
        recipe, metrics, origin: how our checkpoint was trained, how good it was, where it came from.
    """

    model: nn.Module
    name: str
    options: Mapping[str, Any]
    task: str
    labels: tuple[str, ...]
    preprocess: Preprocess | WholePreprocess
    task_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    new_head: bool = False
    recipe: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    origin: str = ""

    def want_answers(self) -> None:
        """Refuse a network that says nothing about a picture.

        Raises:
            UsageError: it has no classes or no head for its task, or wants something else than RGB.
        """
        if self.task == "classify":
            self.want_classifier()
        elif HEADS.get(self.options.get("head", "")) != self.task:
            known = [head for head, task in HEADS.items() if task == self.task]
            raise UsageError(f"{self.name} is to {self.task}, but has no head for it; wanted one of {', '.join(known)}")
        elif not self.labels:
            raise UsageError(f"{self.name} has no classes to {self.task}; train it first")

    def want_classifier(self) -> None:
        """Refuse a network that cannot say what is in a picture.

        Raises:
            UsageError: it has another task, no classes, or wants something else than RGB.
        """
        if self.task != "classify":
            raise UsageError(f"{self.name} was trained to {self.task}; wanted a network that classifies")
        if not self.labels:
            raise UsageError(f"{self.name} has no classes: it is a backbone without a classifier; train one first")
        channels = self.options.get("in_chans", 3)
        if channels != 3:
            raise UsageError(f"{self.name} reads {channels} channels; wanted a network for RGB pictures")


def load(
    source: str | Path,
    *,
    num_classes: int | None = None,
    options: Mapping[str, Any] | None = None,
    backbone_only: bool = False,
) -> Loaded:
    """Load a network from a file, or by name with its public weights.

    Args:
        source: a path to our checkpoint or to any public VAN file, or a timm model name such as ``van_b2``;
            ``swin_tiny`` will do where only one name begins so.
        num_classes: wanted classes; another number than the stored one brings a fresh classifier, None keeps it,
            and 0 takes it off: of a network with a head the backbone is left.
        options: further keyword arguments of the model, such as ``drop_path_rate``.
        backbone_only: make a classification network of the backbone, whatever head the file holds.

    Raises:
        CheckpointError: the file cannot be used.
        HubError: the weights of that name cannot be downloaded.
        UsageError: there is no file and no model of that name, or it cannot have that number of classes.
    """
    path = Path(source)
    extra = dict(options or {})
    name = full_name(str(source))
    if name is not None and not (path.is_file() if name == str(source) else path.exists()):  # it may be a folder's, too
        return _from_name(name, num_classes, extra)
    if path.exists() or path.suffix or len(path.parts) > 1:
        if is_checkpoint(path):
            return _from_ours(path, num_classes, extra, backbone_only=backbone_only or num_classes == 0)
        return _from_public_file(path, num_classes, extra, backbone_only=backbone_only or num_classes == 0)
    raise UsageError(unknown(str(source)))


def full_name(name: str) -> str | None:
    """The timm model of that name, or the only one whose name goes on from there: ``swin_tiny``; None if none does."""
    if timm.is_model(name):
        return name
    longer = timm.list_models(f"{name}_*") if re.fullmatch(r"[a-z0-9_]+", name) else []
    return longer[0] if len(longer) == 1 else None


def start_backbone(network: nn.Module, source: "str | Path | Loaded") -> Loaded:
    """Put the weights of any network on VAN into the backbone of one with a head, entry for entry.

    The eps of LayerNorm is no weight: it stays as ``network`` has it.

    Args:
        network: has a VAN under ``backbone``.
        source: as for ``load``, or what that gave; its classifier or head is left behind.

    Returns:
        What was loaded; its notes tell where the weights came from, what was left behind, and which eps differs.

    Raises:
        NamesMismatch: something beside the classifier does not fit; all of it is listed, and nothing was changed.
        CheckpointError, HubError, UsageError: as for ``load``; or the network has no VAN under ``backbone``.
    """
    backbone = getattr(network, "backbone", None)
    if not isinstance(backbone, VAN):
        raise UsageError(f"{type(network).__name__} has no VAN under 'backbone'; wanted a network with a head on one")
    loaded = source if isinstance(source, Loaded) else load(source, num_classes=0)
    named = loaded.name if isinstance(source, Loaded) else str(source)
    notes = [*loaded.notes, *load_strictly(backbone, loaded.model.state_dict(), source=named)]
    ours, theirs = _norm_eps(backbone), _norm_eps(loaded.model)
    if ours != theirs:
        notes.append(f"the LayerNorms of {named} have an eps of {theirs:g}; here it stays {ours:g}")
    return dataclasses.replace(loaded, notes=tuple(notes))


def in_channels_last(model: nn.Module, device: torch.device) -> nn.Module:
    """The model on ``device`` with its 4-d weights in channels_last, the faster layout for convolutions."""
    model.to(device)
    return model.to(memory_format=torch.channels_last)  # pyrefly: ignore[no-matching-overload]


def usable_device(device: str | torch.device | None) -> torch.device:
    """The device of that name, if PyTorch can use it here; the GPU where there is one if None or ``auto``.

    Raises:
        UsageError: there is no such device.
    """
    present = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    present += ["mps"] if torch.backends.mps.is_available() else []
    if device in (None, "auto"):
        return torch.device(present[1] if "cuda" in present else "cpu")
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"device is {device!r}; wanted auto, cpu, cuda or mps") from error
    if wanted.type not in present or (wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count()):
        raise UsageError(f"device is {device!r}, and PyTorch sees none here; present: {', '.join(present)}")
    return wanted


def imagenet_labels(num_classes: int) -> tuple[str, ...]:
    """ImageNet-1K's class names for 1,000 classes, numbers for any other count."""
    if num_classes == 1000:
        info = ImageNetInfo()
        return tuple(info.index_to_description(index) for index in range(num_classes))
    return numbered_labels(num_classes)


def numbered_labels(num_classes: int) -> tuple[str, ...]:
    """Names for classes that nobody has named."""
    return tuple(f"class {index}" for index in range(num_classes))


def _from_ours(path: Path, num_classes: int | None, options: dict[str, Any], *, backbone_only: bool) -> Loaded:
    checkpoint = load_checkpoint(path)
    if backbone_only and "head" in checkpoint.model_options:
        return _backbone_of_ours(path, checkpoint, num_classes or 0, options)
    stored = len(checkpoint.labels)
    wanted = stored if num_classes is None else num_classes
    merged = {**checkpoint.model_options, **options}
    model = _built(path, checkpoint.model, wanted, merged)
    new_head = num_classes is not None and num_classes != stored
    layers = _class_layers(model)
    if new_head and not layers:
        raise UsageError(
            f"num_classes is {wanted} and {path} has {stored}, which this head cannot change; build a fresh network "
            "and start its backbone from the file"
        )
    notes = load_strictly(
        model, checkpoint.state, source=str(path), classifier=layers, new_head=new_head, stored_classes=stored
    )
    fresh_labels = numbered_labels if "head" in merged else imagenet_labels
    return Loaded(
        model=model.eval(),
        name=checkpoint.model,
        options=merged,
        task=checkpoint.task,
        labels=fresh_labels(wanted) if new_head else checkpoint.labels,
        preprocess=checkpoint.preprocess,
        task_options={} if new_head else checkpoint.task_options,
        notes=notes,
        new_head=new_head,
        recipe=checkpoint.recipe,
        metrics={} if new_head else checkpoint.metrics,
        origin=checkpoint.source,
    )


def _built(path: Path, name: str, num_classes: int, options: Mapping[str, Any]) -> nn.Module:
    """The network that a checkpoint says it is of."""
    try:
        return create(name, num_classes=num_classes, options=options)
    except MissingExtra:  # the file is right, the installation lacks something
        raise
    except UsageError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _backbone_of_ours(path: Path, checkpoint: Checkpoint, wanted: int, options: dict[str, Any]) -> Loaded:
    """A classification network on the backbone of our checkpoint with a head, which is loaded whole first."""
    whole: Any = _built(path, checkpoint.model, len(checkpoint.labels), checkpoint.model_options)
    load_strictly(whole, checkpoint.state, source=str(path))
    state, eps, channels = whole.backbone.state_dict(), _norm_eps(whole.backbone), whole.backbone.in_chans
    merged = {**_structure(eps, channels), **options}
    model = create(checkpoint.model, num_classes=wanted, options=merged)
    load_strictly(model, state, source=str(path), new_head=True)
    rule = checkpoint.preprocess
    return Loaded(
        model=model.eval(),
        name=checkpoint.model,
        options=merged,
        task="classify",
        labels=imagenet_labels(wanted),
        preprocess=Preprocess(interpolation=rule.interpolation, mean=rule.mean, std=rule.std),
        notes=(f"the head of {path} ({checkpoint.model_options['head']}) was left out: only the backbone is used",),
        new_head=True,
        recipe=checkpoint.recipe,
        origin=checkpoint.source,
    )


def _from_public_file(path: Path, num_classes: int | None, options: dict[str, Any], *, backbone_only: bool) -> Loaded:
    weights = read_weights(path)
    told = f"{path.name}: {weights.family} weights of {weights.model}. {LICENSE_NOTE}"
    stored = _structure(weights.norm_eps, weights.in_chans)
    if weights.decoder and not backbone_only:
        return _public_segmenter(path, weights, num_classes, {**stored, **options}, told)
    wanted = weights.num_classes if num_classes is None else num_classes
    merged = {**stored, **options}
    model = create(weights.model, num_classes=wanted, options=merged)
    new_head = num_classes is not None and num_classes != weights.num_classes
    notes = load_strictly(model, weights.state, source=str(path), new_head=new_head)
    left_out = [weights.without_decoder] if weights.decoder else []
    return Loaded(
        model=model.eval(),
        name=weights.model,
        options=merged,
        task="classify",
        labels=imagenet_labels(wanted),
        preprocess=weights.preprocess,
        notes=(told, *weights.notes, *left_out, *notes),
        new_head=new_head,
    )


def _public_segmenter(
    path: Path, weights: Weights, num_classes: int | None, options: dict[str, Any], told: str
) -> Loaded:
    try:
        whole = segmenter_state(weights)
    except UnknownFormat as error:
        raise UnknownFormat(f"{path}: {error}") from error
    wanted = whole.num_classes if num_classes is None else num_classes
    merged = {"head": whole.head, **options}
    model = create(weights.model, num_classes=wanted, options=merged)
    new_head = wanted != whole.num_classes
    notes = load_strictly(model, whole.state, source=str(path), classifier=_class_layers(model), new_head=new_head)
    return Loaded(
        model=model.eval(),
        name=weights.model,
        options=merged,
        task=HEADS[whole.head],
        labels=ADE20K_LABELS if wanted == len(ADE20K_LABELS) else numbered_labels(wanted),
        preprocess=whole.preprocess,
        notes=(told, *whole.notes, *notes),
        new_head=new_head,
    )


def _from_name(name: str, num_classes: int | None, options: dict[str, Any]) -> Loaded:
    wanted: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    try:
        with collect_notes() as told:
            model: Any = timm.create_model(name, pretrained=True, **wanted, **options)
    except VanError:
        raise
    except TypeError as error:
        raise UsageError(f"{name} cannot be built with {options}: {error}") from error
    except Exception as error:  # timm and the hub raise their own, many kinds
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise HubError(
            f"cannot get the weights of {name}: {first} Check the connection, or give the path of a weights file."
        ) from error
    config = model.pretrained_cfg
    notes = [f"weights of {name} from {config.get('hf_hub_id') or config.get('url') or 'the hub'}.", *told]
    new_head = num_classes is not None and num_classes != config.get("num_classes")
    if new_head and not told:  # not one of ours
        notes.append(f"its classifier ({config.get('num_classes')} classes) was left out: {num_classes} were asked for")
    return Loaded(
        model=model.eval(),
        name=name,
        options=options,
        task="classify",
        labels=imagenet_labels(model.num_classes),
        preprocess=Preprocess.from_timm(config),
        notes=tuple(notes),
        new_head=new_head,
    )


def _structure(norm_eps: float, in_chans: int) -> dict[str, Any]:
    """Options of a VAN that its tensors' names do not say, where they are not the released ones."""
    return {**({"norm_eps": norm_eps} if norm_eps != 1e-6 else {}), **({"in_chans": in_chans} if in_chans != 3 else {})}


def _norm_eps(model: nn.Module) -> float:
    network: Any = model
    return network.norm1.eps


def _class_layers(model: nn.Module) -> tuple[str, ...]:
    """The layers whose size follows the number of classes; none where a head does not say."""
    if hasattr(model, "backbone") and not hasattr(model, "pretrained_cfg"):
        return getattr(model, "class_layers", ())
    name = getattr(model, "pretrained_cfg", {}).get("classifier") or "head"
    return (name,) if isinstance(name, str) else (name[0],)
