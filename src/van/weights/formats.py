"""Public VAN weights of every family: conversion of their tensor names, and the preprocessing of their training.

A family is detected from its tensor names. The result has the official names, those of the released code, so that one
strict load serves all families.
Source: the released code, transformers 4.57, mmpretrain 1.2, mmsegmentation 1.2.
"""

import contextlib
import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from van.errors import StateDictMismatch, UnknownFormat
from van.preprocess import IMAGENET_MEAN, IMAGENET_STD, CenterCropPreprocess, ResizePreprocess
from van.weights.published import VARIANTS
from van.weights.tensor_files import read_tensors

Rename = tuple[str, str | Callable[[re.Match[str]], str]]
"""A pattern, and its replacement as for ``re.sub``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """One naming scheme of VAN's tensors, as patterns.

    Args:
        signature: matches a name that only this family has.
        renames: patterns and replacements that lead to the official names, in order.
        unused: matches tensors that the family stores and the network never reads.
        decoder: matches tensors of a segmentation head.
        norm_eps: of the LayerNorms, which no tensor records.
        imagenet_mean: whether images are normalized with ImageNet's mean and deviation; always for ImageNet-22K.
    """

    name: str
    signature: str
    renames: tuple[Rename, ...] = ()
    unused: str = r"(?!)"
    decoder: str = r"(?!)"
    norm_eps: float = 1e-6
    imagenet_mean: bool = False


def _stage(name: str) -> Callable[[re.Match[str]], str]:
    """Return a replacement with the number of the stage, which Hugging Face counts from 0, in place of ``{}``."""
    return lambda match: name.format(int(match[1]) + 1)


_WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.)+")
_MM_DWCONV = (r"\.mlp\.dwconv\.(weight|bias)$", r".mlp.dwconv.dwconv.\1")
_HF_BLOCK = (
    (".pre_normomalization.", ".norm1."),
    (".post_normalization.", ".norm2."),
    (".attention.pre_projection.conv.", ".attn.proj_1."),
    (".attention.attention_layer.attention.depth_wise.", ".attn.spatial_gating_unit.conv0."),
    (".attention.attention_layer.attention.depth_wise_dilated.", ".attn.spatial_gating_unit.conv_spatial."),
    (".attention.attention_layer.attention.point_wise.", ".attn.spatial_gating_unit.conv1."),
    (".attention.post_projection.", ".attn.proj_2."),
    (".attention_scaling.weight", ".layer_scale_1"),
    (".mlp_scaling.weight", ".layer_scale_2"),
    (".mlp.in_dense.", ".mlp.fc1."),
    (".mlp.out_dense.", ".mlp.fc2."),
    (".mlp.depth_wise.", ".mlp.dwconv.dwconv."),
)

FAMILIES = (
    Family(
        name="huggingface",
        signature=r"^(?:van\.)?encoder\.stages\.\d+\.embeddings\.convolution\.",
        renames=(
            (r"^classifier\.", "head."),
            *((re.escape(theirs), ours) for theirs, ours in _HF_BLOCK),
            (r"^(?:van\.)?encoder\.stages\.(\d+)\.embeddings\.convolution\.", _stage("patch_embed{}.proj.")),
            (r"^(?:van\.)?encoder\.stages\.(\d+)\.embeddings\.normalization\.", _stage("patch_embed{}.norm.")),
            (r"^(?:van\.)?encoder\.stages\.(\d+)\.normalization\.", _stage("norm{}.")),
            (r"^(?:van\.)?encoder\.stages\.(\d+)\.layers\.", _stage("block{}.")),
        ),
        unused=r"^(?:van\.)?layernorm\.",
    ),
    Family(
        name="mmpretrain",
        signature=r"^(?:backbone\.)?patch_embed1\.projection\.",
        renames=(
            (r"^backbone\.", ""),
            (r"^head\.fc\.", "head."),
            (r"^(patch_embed\d)\.projection\.", r"\1.proj."),
            (r"^blocks(\d)\.", r"block\1."),
            (r"\.DW_conv\.", ".conv0."),
            (r"\.DW_D_conv\.", ".conv_spatial."),
            _MM_DWCONV,
        ),
        unused=r"^data_preprocessor\.",
    ),
    Family(
        name="mmsegmentation",
        signature=r"^backbone\.patch_embed1\.proj\.",
        renames=((r"^backbone\.", ""), _MM_DWCONV),
        unused=r"^(?:ema_|data_preprocessor\.)",  # mmcv's moving averages, under names without dots
        decoder=r"^(?:neck|decode_head|auxiliary_head)\.",
        norm_eps=1e-5,
        imagenet_mean=True,
    ),
    Family(name="official", signature=r"^patch_embed1\.proj\.", renames=(_MM_DWCONV,)),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
    """The content of a public weights file: tensors by official name, and the settings that belong to them.

    ``decoder`` holds the tensors of a segmentation head; the file's names for them are those of this package. ``head``
    is its name once ``convert_segmenter`` has added them to ``state``.
    """

    family: str
    model: str
    num_classes: int
    in_chans: int
    norm_eps: float
    preprocess: CenterCropPreprocess | ResizePreprocess
    state: dict[str, Tensor]
    decoder: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    head: str = ""
    notes: tuple[str, ...] = ()

    @property
    def skipped_decoder_note(self) -> str:
        """The note for the user when only the backbone is loaded."""
        modules = sorted({name.split(".")[0] for name in self.decoder})
        return f"skipped {len(self.decoder)} tensors of {', '.join(modules)}: only the backbone is loaded"


def detect_family(names: Mapping[str, object]) -> Family:
    """Return the family that tensor names belong to."""
    for family in FAMILIES:
        if any(re.match(family.signature, name) for name in names):
            return family
    shown = ", ".join(list(names)[:4])
    known = ", ".join(family.name for family in FAMILIES)
    raise UnknownFormat(f"tensor names: expected VAN weights of a known family ({known}), got {shown}")


def convert_weights(tensors: Mapping[str, Tensor], *, model: str | None = None) -> Weights:
    """Convert a public family's tensors to the official names, and infer the variant and its settings.

    Args:
        tensors: by name; the prefixes of ``DataParallel`` and ``torch.compile`` are removed.
        model: the network's name if it is known; otherwise the shapes must be those of a variant.

    Raises:
        UnknownFormat: the names belong to no family, or the shapes to no variant.
    """
    inner = tensors.get("state_dict")
    if isinstance(inner, Mapping):
        tensors = inner
    tensors = {_WRAPPERS.sub("", name): tensor for name, tensor in tensors.items()}
    family = detect_family(tensors)
    state: dict[str, Tensor] = {}
    decoder: dict[str, Tensor] = {}
    unused = []
    for name, tensor in tensors.items():
        if re.match(family.unused, name):
            unused.append(name)
        elif re.match(family.decoder, name):
            decoder[name] = tensor
        else:
            for pattern, replacement in family.renames:
                name = re.sub(pattern, replacement, name)
            state[name] = tensor
    notes = []
    if unused:
        shown = ", ".join(unused[:4]) + (f" and {len(unused) - 4} more" if len(unused) > 4 else "")
        notes.append(f"skipped {shown}: stored by {family.name}, not used by the network")
    variant = model or detect_variant(state)
    stem = state.get("patch_embed1.proj.weight")
    if stem is None or stem.ndim != 4:
        raise UnknownFormat("expected the weights of a complete VAN, found no patch_embed1.proj.weight of 4 dimensions")
    num_classes = state["head.weight"].shape[0] if "head.weight" in state else 0
    preprocess = CenterCropPreprocess()
    if family.imagenet_mean or num_classes > 20_000:  # ImageNet-22K
        preprocess = dataclasses.replace(preprocess, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    return Weights(
        family=family.name,
        model=variant,
        num_classes=num_classes,
        in_chans=stem.shape[1],
        norm_eps=family.norm_eps,
        preprocess=preprocess,
        state=state,
        decoder=decoder,
        notes=tuple(notes),
    )


def convert_segmenter(weights: Weights, heads: Mapping[str, str]) -> Weights:
    """Return ``weights`` with the tensors of the decoder under the names of a segmentation network.

    Args:
        weights: of an mmsegmentation file.
        heads: names of heads by the prefix of tensor names that only they have.

    Raises:
        UnknownFormat: the decoder is none of them.
    """
    state = {**{f"backbone.{name}": tensor for name, tensor in weights.state.items()}, **weights.decoder}
    head = next((head for prefix, head in heads.items() if any(name.startswith(prefix) for name in state)), None)
    classifier = state.get("decode_head.conv_seg.weight")
    if head is None or classifier is None or classifier.ndim != 4:
        shown = ", ".join(list(weights.decoder)[:4])
        raise UnknownFormat(
            f"decoder: expected a complete {' or '.join(heads.values())} head, got tensors such as {shown}; "
            "num_classes=0 loads only the backbone"
        )
    # files of old PyTorch versions lack these counters, which nothing in this package reads
    counters = [name.replace("running_mean", "num_batches_tracked") for name in state if name.endswith("running_mean")]
    missing = {name: torch.tensor(0) for name in counters if name not in state}
    notes = [f"{len(missing)} num_batches_tracked counters are not in the file and start at 0"] if missing else []
    return dataclasses.replace(
        weights,
        head=head,
        num_classes=classifier.shape[0],
        preprocess=ResizePreprocess(min_size=512, max_size=2048, mean=IMAGENET_MEAN, std=IMAGENET_STD),
        state={**state, **missing},
        notes=(*weights.notes, *notes),
    )


def read_weights(path: Path, *, model: str | None = None) -> Weights:
    """Read a public weights file of any family safely; ``model`` as in ``convert_weights``.

    Raises:
        CheckpointError: see ``tensor_files.read_tensors`` and ``convert_weights``.
    """
    tensors, _ = read_tensors(path)
    try:
        return convert_weights(tensors, model=model)
    except UnknownFormat as error:
        raise UnknownFormat(f"{path}: {error}") from error


def load_state_dict_strict(
    model: nn.Module, state: Mapping[str, Tensor], *, source: str, classifier: tuple[str, ...] = ("head",),
    new_head: bool = False, stored_classes: int | None = None,
) -> tuple[str, ...]:  # fmt: skip
    """Load ``state`` into ``model`` strictly, and return notes for the user about what was skipped.

    Args:
        model, state: any network, and its tensors by name.
        source: the file's name in error messages.
        classifier: the names of the model's layers whose size depends on the number of classes.
        new_head: the number of classes has changed: the stored classifier is skipped, with a note.
        stored_classes: the number of classes in the file; read from the first of the layers if None.

    Raises:
        StateDictMismatch: tensors are missing, unexpected or of another shape; all of them are listed.
    """
    expected = dict(model.state_dict())
    stored = dict(state)
    notes = []
    if new_head:
        heads = [name for name in {**expected, **stored} if name.startswith(tuple(f"{layer}." for layer in classifier))]
        weight = stored.get(f"{classifier[0]}.weight")
        if stored_classes is None:
            stored_classes = 0 if weight is None else weight.shape[0]
        stored = {name: tensor for name, tensor in stored.items() if name not in heads}
        stored |= {name: expected[name] for name in heads if name in expected}
        if stored_classes:
            notes.append(replaced_classifier_note(source, stored_classes, getattr(model, "num_classes", 0)))
    check_state_dict(expected, stored, source=source, classifier=classifier)
    model.load_state_dict(stored)
    return tuple(notes)


def replaced_classifier_note(source: str, stored_classes: int, num_classes: int) -> str:
    """Return the note for the user about a classifier that was not loaded."""
    return f"skipped the classifier of {source}: it has {stored_classes} classes, and the model has {num_classes}"


def check_state_dict(
    expected: Mapping[str, Tensor],
    stored: Mapping[str, Tensor],
    *,
    source: str,
    classifier: tuple[str, ...] = ("head",),
) -> None:
    """Compare names and shapes of a model's tensors with those of a file; all differences are in one error."""
    missing = [name for name in expected if name not in stored]
    unexpected = [name for name in stored if name not in expected]
    mismatched = [
        f"{name} expected {tuple(expected[name].shape)}, got {tuple(stored[name].shape)}"
        for name in expected
        if name in stored and stored[name].shape != expected[name].shape
    ]
    wrong = [*missing, *unexpected, *mismatched]
    if not wrong:
        return
    hint = ""
    if all(name.startswith(tuple(f"{layer}." for layer in classifier)) for name in wrong):
        hint = "Only the classifier differs: set num_classes to replace it."
    else:
        with contextlib.suppress(UnknownFormat):
            hint = f"The file holds the weights of {detect_variant(stored)}."
    raise StateDictMismatch(source, missing=missing, unexpected=unexpected, mismatched=mismatched, hint=hint)


def detect_variant(state: Mapping[str, Tensor]) -> str:
    """Return the variant that tensors with official names belong to: ``van_b0`` ... ``van_b6``."""
    depths = [len({name.split(".")[1] for name in state if name.startswith(f"block{s}.")}) for s in (1, 2, 3, 4)]
    embeds = [state.get(f"patch_embed{s}.proj.weight") for s in (1, 2, 3, 4)]
    dims = [weight.shape[0] if weight is not None and weight.ndim else 0 for weight in embeds]
    for variant in VARIANTS.values():
        if list(variant.dims) == dims and list(variant.depths) == depths:
            return variant.name
    known = "; ".join(f"{v.name} {v.dims} {v.depths}" for v in VARIANTS.values())
    raise UnknownFormat(f"expected channels and depths of a VAN ({known}), got channels {dims} and depths {depths}")
