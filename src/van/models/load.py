"""One door to every network: our checkpoint, a public weights file, or a timm model name."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import ImageNetInfo
from torch import nn

from van.checkpoint import is_checkpoint, load_checkpoint
from van.errors import CheckpointError, HubError, UsageError, VanError
from van.models import van as _registered  # noqa: F401  importing it registers VAN with timm
from van.models.catalogue import LICENSE_NOTE, VARIANTS
from van.models.hub import collect_notes
from van.models.weights import load_strictly, read_weights
from van.preprocess import Preprocess


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loaded:
    """A network ready for use, with what travels with it.

    Args:
        options: the model's keyword arguments beside ``num_classes``.
        notes: what the user should be told: what was left out, where the weights came from.
        new_head: the classifier is a fresh one, because another number of classes was asked for.
        recipe, metrics, origin: how our checkpoint was trained, how good it was, where it came from.
    """

    model: nn.Module
    name: str
    options: Mapping[str, Any]
    task: str
    labels: tuple[str, ...]
    preprocess: Preprocess
    notes: tuple[str, ...] = ()
    new_head: bool = False
    recipe: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    origin: str = ""

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


def load(source: str | Path, *, num_classes: int | None = None, options: Mapping[str, Any] | None = None) -> Loaded:
    """Load a network from a file, or by name with its public weights.

    Args:
        source: a path to our checkpoint or to any public VAN file, or a timm model name such as ``van_b2``.
        num_classes: wanted classes; another number than the stored one brings a fresh classifier, None keeps it.
        options: further keyword arguments of the model, such as ``drop_path_rate``.

    Raises:
        CheckpointError: the file cannot be used.
        HubError: the weights of that name cannot be downloaded.
        UsageError: there is no file and no model of that name.
    """
    path = Path(source)
    extra = dict(options or {})
    if timm.is_model(str(source)) and not path.is_file():  # a name may have a dot, or be a folder's, too
        return _from_name(str(source), num_classes, extra)
    if path.exists() or path.suffix or len(path.parts) > 1:
        if is_checkpoint(path):
            return _from_ours(path, num_classes, extra)
        return _from_public_file(path, num_classes, extra)
    raise UsageError(_unknown(str(source)))


def create(name: str, *, num_classes: int, options: Mapping[str, Any] | None = None) -> nn.Module:
    """A fresh, untrained timm model.

    Raises:
        UsageError: timm has no model of that name, or the model refuses the options.
    """
    if not timm.is_model(name):
        raise UsageError(_unknown(name))
    try:
        return timm.create_model(name, num_classes=num_classes, **(options or {}))
    except (TypeError, RuntimeError) as error:  # an option it does not take; a tag that timm does not know
        raise UsageError(f"{name} cannot be built with {dict(options or {})}: {error}") from error


def in_channels_last(model: nn.Module, device: torch.device) -> nn.Module:
    """The model on ``device`` with its 4-d weights in channels_last, the faster layout for convolutions."""
    model.to(device)
    return model.to(memory_format=torch.channels_last)  # pyrefly: ignore[no-matching-overload]


def imagenet_labels(num_classes: int) -> tuple[str, ...]:
    """ImageNet-1K's class names for 1,000 classes, numbers for any other count."""
    if num_classes == 1000:
        info = ImageNetInfo()
        return tuple(info.index_to_description(index) for index in range(num_classes))
    return tuple(f"class {index}" for index in range(num_classes))


def _from_ours(path: Path, num_classes: int | None, options: dict[str, Any]) -> Loaded:
    checkpoint = load_checkpoint(path)
    stored = len(checkpoint.labels)
    wanted = stored if num_classes is None else num_classes
    merged = {**checkpoint.model_options, **options}
    try:
        model = create(checkpoint.model, num_classes=wanted, options=merged)
    except UsageError as error:
        raise CheckpointError(f"{path}: {error}") from error
    classifier = _classifier_name(model)
    new_head = num_classes is not None and num_classes != stored
    notes = load_strictly(model, checkpoint.state, source=str(path), classifier=classifier, new_head=new_head)
    return Loaded(
        model=model.eval(),
        name=checkpoint.model,
        options=merged,
        task=checkpoint.task,
        labels=imagenet_labels(wanted) if new_head else checkpoint.labels,
        preprocess=checkpoint.preprocess,
        notes=notes,
        new_head=new_head,
        recipe=checkpoint.recipe,
        metrics={} if new_head else checkpoint.metrics,
        origin=checkpoint.source,
    )


def _from_public_file(path: Path, num_classes: int | None, options: dict[str, Any]) -> Loaded:
    weights = read_weights(path)
    wanted = weights.num_classes if num_classes is None else num_classes
    stored = {"norm_eps": weights.norm_eps} if weights.norm_eps != 1e-6 else {}
    stored |= {"in_chans": weights.in_chans} if weights.in_chans != 3 else {}
    merged = {**stored, **options}
    model = create(weights.model, num_classes=wanted, options=merged)
    new_head = num_classes is not None and num_classes != weights.num_classes
    notes = load_strictly(model, weights.state, source=str(path), new_head=new_head)
    return Loaded(
        model=model.eval(),
        name=weights.model,
        options=merged,
        task="classify",
        labels=imagenet_labels(wanted),
        preprocess=weights.preprocess,
        notes=(f"{path.name}: {weights.family} weights of {weights.model}. {LICENSE_NOTE}", *weights.notes, *notes),
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


def _unknown(name: str) -> str:
    known = ", ".join(VARIANTS)
    return f"{name!r} is neither a file nor a model; known: {known}, and every timm model with public weights"


def _classifier_name(model: nn.Module) -> str:
    name = getattr(model, "pretrained_cfg", {}).get("classifier") or "head"
    return name if isinstance(name, str) else name[0]
