"""Where a ``Model`` comes from: checkpoints, run folders, public weights, transformers, names, exported files."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from van.backbones.van import VAN
from van.checkpoint import Checkpoint, is_checkpoint, load_checkpoint
from van.errors import CheckpointError, DataError, HubError, MissingExtra, UnknownFormat, UsageError, VanError
from van.heads import HEADS, create_model
from van.heads.registry import unknown_model_message
from van.model import Model, imagenet_class_names, numbered_class_names
from van.preprocess import CenterCropPreprocess
from van.weights.ade20k import ADE20K_LABELS
from van.weights.formats import (
    convert_segmenter,
    load_state_dict_strict,
    read_weights,
    replaced_classifier_note,
)
from van.weights.published import LICENSE_NOTE, VARIANTS

RUN_CHECKPOINT = "best.safetensors"
"""The file of a run folder that is loaded."""
_STRUCTURE = ("dims", "depths", "mlp_ratios", "kernel_size", "dilation")
_TRANSFORMERS_FILES = ("model.safetensors", "pytorch_model.bin")


def load_source(
    source: str | Path,
    num_classes: int | None,
    extra: dict[str, Any],
    backbone_only: bool,
    network: nn.Module | None,
    threads: int | None,
    device: str | None,
) -> Model:
    """Find out what the source is, and load it; arguments as those of ``Model.load``."""
    path = Path(source)
    # a folder may have the full name of a model, but only a file takes precedence over it
    name = None if path.is_file() else resolve_model_name(str(source))
    if name is not None and (name == str(source) or not path.exists()):
        return _load_by_name(name, num_classes, extra)
    if not (path.exists() or path.suffix or len(path.parts) > 1):
        raise UsageError(unknown_model_message(str(source)))
    path, labels = _find_in_folder(path) if path.is_dir() else (path, None)
    if not is_checkpoint(path):  # asked first, because then the runtimes need not be imported
        from van.export.formats import is_exported

        if is_exported(path):
            if num_classes is not None or extra or backbone_only or network is not None:
                raise UsageError(f"{path}: expected no change of an exported network; load the checkpoint instead")
            return _load_exported(path, threads, device)
    if threads is not None:
        raise UsageError(f"threads: expected None for {path}, which is not an exported file, got {threads}")
    only_backbone = backbone_only or num_classes == 0
    if is_checkpoint(path):
        return _load_checkpoint(path, num_classes, extra, backbone_only=only_backbone, network=network)
    loaded = _load_public_file(path, num_classes, extra, backbone_only=only_backbone)
    return loaded.replace(class_names=labels) if labels and len(labels) == len(loaded.class_names) else loaded


def _find_in_folder(folder: Path) -> tuple[Path, tuple[str, ...] | None]:
    """Return the weights in a run folder or a folder of transformers, and the class names of the latter."""
    if (folder / RUN_CHECKPOINT).is_file():
        return folder / RUN_CHECKPOINT, None
    path = next((folder / name for name in _TRANSFORMERS_FILES if (folder / name).is_file()), None)
    if path is None:
        raise CheckpointError(
            f"{folder}: expected a run folder with {RUN_CHECKPOINT} or a folder of transformers with "
            f"{' or '.join(_TRANSFORMERS_FILES)}, got neither"
        )
    try:
        labels = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("id2label", {})
        return path, tuple(str(labels[str(index)]) for index in range(len(labels))) or None
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise DataError(f"{folder / 'config.json'}: cannot be read as transformers' configuration: {error}") from error


def _load_exported(path: Path, threads: int | None, device: str | None) -> Model:
    """Open an exported file; its session is the network."""
    from van.export.formats import open_session

    session: Any = open_session(path, threads=threads, device="cpu" if device in (None, "auto") else str(device))
    header = session.header
    return Model(
        session,
        name=header.model,
        options=header.model_options,
        task=header.task,
        class_names=header.class_names,
        preprocess=header.preprocess,
        task_options=header.task_options,
        notes=header.notes,
        origin=str(path),
    )


def resolve_model_name(name: str) -> str | None:
    """Return the timm model of that name, or the only one that it is a prefix of (``swin_tiny``); otherwise None."""
    if name in VARIANTS:
        return name
    import timm  # which takes seconds, and VAN does without

    if timm.is_model(name):
        return name
    longer = timm.list_models(f"{name}_*") if re.fullmatch(r"[a-z0-9_]+", name) else []
    return longer[0] if len(longer) == 1 else None


def load_backbone_weights(network: nn.Module, source: "str | Path | Model") -> Model:
    """Load the backbone of any VAN network into a network with a head, strictly.

    The eps of LayerNorm is not a weight: ``network`` keeps its own.

    Args:
        network: a network with a VAN under ``backbone``.
        source: as for ``Model.load``, or its result; its classifier or head is skipped.

    Returns:
        The loaded source; its notes name the origin, what was skipped, and a different eps.

    Raises:
        StateDictMismatch: a tensor outside the classifier does not match; all are listed, and nothing was changed.
        CheckpointError, HubError, UsageError: as for ``Model.load``; or the network has no VAN under ``backbone``.
    """
    backbone: Any = getattr(network, "backbone", None)
    if not isinstance(backbone, VAN):
        raise UsageError(f"network: expected a VAN under 'backbone', got a {type(network).__name__} without one")
    loaded = source if isinstance(source, Model) else Model.load(source, num_classes=0)
    source_name = loaded.name if isinstance(source, Model) else str(source)
    notes = [*loaded.notes, *load_state_dict_strict(backbone, loaded.network.state_dict(), source=source_name)]
    own_eps, source_eps = (getattr(one, "norm1").eps for one in (backbone, loaded.network))  # noqa: B009
    if own_eps != source_eps:
        notes.append(f"LayerNorm eps: {source_name} has {source_eps:g}, the network keeps {own_eps:g}")
    return loaded.replace(notes=notes)


def _load_checkpoint(
    path: Path, num_classes: int | None, options: dict[str, Any], *, backbone_only: bool, network: nn.Module | None
) -> Model:
    checkpoint = load_checkpoint(path)
    if backbone_only and "head" in checkpoint.model_options:
        return _load_checkpoint_backbone(path, checkpoint, num_classes or 0, options)
    stored = len(checkpoint.class_names)
    expected = stored if num_classes is None else num_classes
    merged = {**checkpoint.model_options, **options}
    model = network or _create_stored_model(path, checkpoint.model, expected, merged)
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
    return Model(
        model.eval(),
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
        hint = (
            "" if resolve_model_name(name) == name else "; for a network of your own, give it to Model.load as network"
        )
        raise CheckpointError(f"{path}: {error}{hint}") from error


def _load_checkpoint_backbone(path: Path, checkpoint: Checkpoint, num_classes: int, options: dict[str, Any]) -> Model:
    """Load a checkpoint with a head as a classification network; the whole network is loaded first, to check it."""
    whole: Any = _create_stored_model(path, checkpoint.model, len(checkpoint.class_names), checkpoint.model_options)
    load_state_dict_strict(whole, checkpoint.state, source=str(path))
    backbone, stored = whole.backbone, checkpoint.model_options
    structure = {name: stored[name] for name in _STRUCTURE if name in stored}
    merged = {**_stored_options(backbone.norm1.eps, backbone.in_chans), **structure, **options}
    model = create_model(checkpoint.model, num_classes=num_classes, options=merged)
    load_state_dict_strict(model, backbone.state_dict(), source=str(path), new_head=True)
    rule = checkpoint.preprocess
    return Model(
        model.eval(),
        name=checkpoint.model,
        options=merged,
        class_names=imagenet_class_names(num_classes),
        preprocess=CenterCropPreprocess(interpolation=rule.interpolation, mean=rule.mean, std=rule.std),
        notes=(f"skipped the head of {path} ({checkpoint.model_options['head']}): only the backbone is loaded",),
        new_head=True,
        recipe=checkpoint.recipe,
        origin=checkpoint.source,
    )


def _load_public_file(path: Path, num_classes: int | None, options: dict[str, Any], *, backbone_only: bool) -> Model:
    """Load a public weights file: a classifier, a backbone, or with a decoder a network for segmentation."""
    weights = read_weights(path)
    notes = [f"{path.name}: {weights.family} weights of {weights.model}. {LICENSE_NOTE}"]
    merged = {**_stored_options(weights.norm_eps, weights.in_chans), **options}
    found: Any = weights
    if weights.decoder and not backbone_only:
        try:
            prefixes = {head.public_prefix: head.name for head in HEADS.values() if head.public_prefix}
            found = convert_segmenter(weights, prefixes)
        except UnknownFormat as error:
            raise UnknownFormat(f"{path}: {error}") from error
        merged = {"head": found.head, **merged}
    expected = found.num_classes if num_classes is None else num_classes
    model = create_model(weights.model, num_classes=expected, options=merged)
    new_head = expected != found.num_classes
    layers = _class_layers(model)
    loading_notes = load_state_dict_strict(model, found.state, source=str(path), classifier=layers, new_head=new_head)
    skipped = [weights.skipped_decoder_note] if weights.decoder and backbone_only else []
    is_ade20k = "head" in merged and expected == len(ADE20K_LABELS)
    default_names = numbered_class_names if "head" in merged else imagenet_class_names
    return Model(
        model.eval(),
        name=weights.model,
        options=merged,
        task=HEADS[merged["head"]].task if "head" in merged else "classify",
        class_names=ADE20K_LABELS if is_ade20k else default_names(expected),
        preprocess=found.preprocess,
        notes=(*notes, *found.notes, *skipped, *loading_notes),
        new_head=new_head,
    )


def _load_by_name(name: str, num_classes: int | None, options: dict[str, Any]) -> Model:
    import timm

    from van.weights.hub import collect_notes

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
    return Model(
        model.eval(),
        name=name,
        options=options,
        class_names=imagenet_class_names(model.num_classes),
        preprocess=CenterCropPreprocess.from_timm(config),
        notes=tuple(notes),
        new_head=new_head,
    )


def _stored_options(norm_eps: float, in_chans: int) -> dict[str, Any]:
    """Return the options of a VAN that differ from the defaults and cannot be inferred from the tensor names."""
    return {**({"norm_eps": norm_eps} if norm_eps != 1e-6 else {}), **({"in_chans": in_chans} if in_chans != 3 else {})}


def _class_layers(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the layers whose size depends on the number of classes; none if the head has no such list."""
    if hasattr(model, "backbone") and not hasattr(model, "pretrained_cfg"):
        return getattr(model, "class_layers", ())
    name = getattr(model, "pretrained_cfg", {}).get("classifier") or "head"
    return (name,) if isinstance(name, str) else (name[0],)
