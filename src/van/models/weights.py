"""Every public family of VAN weights: how its names read, and the preprocessing it was trained with.

A family is recognised from its tensor names. Whatever it is, the result carries the official
names, so that one strict load serves them all. ``s`` is a stage from 1, ``j`` a block from 0.
Source: the released code, transformers 4.57, mmpretrain 1.2, mmsegmentation 1.2.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from van.errors import NamesMismatch, UnknownFormat
from van.models.catalogue import VARIANTS
from van.models.tensor_files import read_tensors
from van.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess, WholePreprocess

Rename = tuple[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """A way of naming VAN's tensors.

    ``signature`` finds the family, ``renames`` lead to the official names, ``unused`` are tensors
    that the family stores and the network never reads, ``decoder`` are those of a head for another task.
    """

    name: str
    signature: str
    renames: tuple[Rename, ...] = ()
    unused: str = r"(?!)"
    decoder: str = r"(?!)"
    norm_eps: float = 1e-6


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
            (r"^(?:van\.)?encoder\.stages\.(\d+)\.embeddings\.convolution\.", "patch_embed{stage}.proj."),
            (r"^(?:van\.)?encoder\.stages\.(\d+)\.embeddings\.normalization\.", "patch_embed{stage}.norm."),
            (r"^(?:van\.)?encoder\.stages\.(\d+)\.normalization\.", "norm{stage}."),
            (r"^(?:van\.)?encoder\.stages\.(\d+)\.layers\.", "block{stage}."),
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
        unused=r"^(?:ema_|data_preprocessor\.)",  # mmcv's averages, under names without dots
        decoder=r"^(?:neck|decode_head|auxiliary_head)\.",
        norm_eps=1e-5,
    ),
    Family(name="official", signature=r"^patch_embed1\.proj\.", renames=(_MM_DWCONV,)),
)
_DECODERS = {"decode_head.scale_heads.": "semantic_fpn", "decode_head.psp_modules.": "upernet"}
"""How the names of each head start."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
    """A public file, read: official names, and all that must travel with them.

    ``decoder`` holds the tensors of a segmentation head, under the file's names, which are our own.
    """

    family: str
    model: str
    num_classes: int
    in_chans: int
    norm_eps: float
    preprocess: Preprocess
    state: dict[str, Tensor]
    decoder: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def without_decoder(self) -> str:
        """What to say where the backbone alone is used."""
        parts = sorted({name.split(".")[0] for name in self.decoder})
        return f"left out {len(self.decoder)} tensors of {', '.join(parts)}: only the backbone is used"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmenterWeights:
    """A whole segmenter of mmsegmentation: names as in ``van.models.segmenters.Segmenter``."""

    head: str
    num_classes: int
    preprocess: WholePreprocess
    state: dict[str, Tensor]
    notes: tuple[str, ...] = ()


def recognise(names: Mapping[str, object]) -> Family:
    """The family that tensor names belong to.

    Raises:
        UnknownFormat: none.
    """
    for family in FAMILIES:
        if any(re.match(family.signature, name) for name in names):
            return family
    shown = ", ".join(list(names)[:4])
    known = ", ".join(family.name for family in FAMILIES)
    raise UnknownFormat(f"tensor names such as {shown} belong to no known VAN family ({known})")


def official_state(tensors: Mapping[str, Tensor], *, model: str | None = None) -> Weights:
    """Rename a public family's tensors to the official names and read off what the network is.

    Args:
        tensors: by name; the prefixes of data parallelism and ``torch.compile`` are taken off.
        model: the network's name where it is known; else the sizes must be a variant's.

    Raises:
        UnknownFormat: the names belong to no family, or the sizes to no variant.
    """
    tensors = {_WRAPPERS.sub("", name): tensor for name, tensor in _unwrapped(tensors).items()}
    family = recognise(tensors)
    state: dict[str, Tensor] = {}
    decoder: dict[str, Tensor] = {}
    unused = []
    for name, tensor in tensors.items():
        if re.match(family.unused, name):
            unused.append(name)
        elif re.match(family.decoder, name):
            decoder[name] = tensor
        else:
            state[_official_name(name, family)] = tensor
    notes = []
    if unused:
        shown = ", ".join(unused[:4]) + (f" and {len(unused) - 4} more" if len(unused) > 4 else "")
        notes.append(f"left out {shown}: stored by {family.name}, never used by the network")
    num_classes = state["head.weight"].shape[0] if "head.weight" in state else 0
    return Weights(
        family=family.name,
        model=model or variant_of(state),
        num_classes=num_classes,
        in_chans=_input_channels(state),
        norm_eps=family.norm_eps,
        preprocess=_preprocess_of(family, num_classes),
        state=state,
        decoder=decoder,
        notes=tuple(notes),
    )


def segmenter_state(weights: Weights) -> SegmenterWeights:
    """The whole segmenter that ``weights`` hold, its head told from its names.

    Raises:
        UnknownFormat: the head is neither of the paper's two.
    """
    state = {**{f"backbone.{name}": tensor for name, tensor in weights.state.items()}, **weights.decoder}
    head = next((head for start, head in _DECODERS.items() if any(n.startswith(start) for n in state)), None)
    classifier = state.get("decode_head.conv_seg.weight")
    if head is None or classifier is None or classifier.ndim != 4:
        shown = ", ".join(list(weights.decoder)[:4])
        raise UnknownFormat(
            f"a decoder with names such as {shown} is no whole {' or '.join(_DECODERS.values())}; "
            "num_classes=0 takes the backbone alone"
        )
    counters = [name.replace("running_mean", "num_batches_tracked") for name in state if name.endswith("running_mean")]
    absent = {name: torch.tensor(0) for name in counters if name not in state}
    counted = [f"{len(absent)} of BatchNorm's counters are not in the file and start at 0"] if absent else []
    return SegmenterWeights(
        head=head,
        num_classes=classifier.shape[0],
        preprocess=WholePreprocess(short_px=512, long_px=2048, mean=IMAGENET_MEAN, std=IMAGENET_STD),
        state={**state, **absent},
        notes=(*weights.notes, *counted),
    )


def read_weights(path: Path, *, model: str | None = None) -> Weights:
    """Open a public weights file of any family, safely; ``model`` as in ``official_state``.

    Raises:
        CheckpointError: see ``tensor_files.read_tensors`` and ``official_state``.
    """
    tensors, _ = read_tensors(path)
    try:
        return official_state(tensors, model=model)
    except UnknownFormat as error:
        raise UnknownFormat(f"{path}: {error}") from error


def load_strictly(
    model: nn.Module,
    state: Mapping[str, Tensor],
    *,
    source: str,
    classifier: tuple[str, ...] = ("head",),
    new_head: bool = False,
    stored_classes: int | None = None,
) -> tuple[str, ...]:
    """Put ``state`` into ``model``, entry for entry.

    Args:
        model: any network.
        state: its tensors by name, as ``model.state_dict()`` would give them.
        source: names the file in messages.
        classifier: the model's names for the layers whose size follows the number of classes.
        new_head: the caller asked for other classes: the stored classifier is left behind, and said so.
        stored_classes: how many the file's has; read off the first of the layers if None.

    Returns:
        Notes for the user: what was left behind.

    Raises:
        NamesMismatch: something is missing, left over or of another shape; all of it is listed.
    """
    ours = dict(model.state_dict())
    theirs = dict(state)
    notes = []
    if new_head:
        heads = [name for name in {**ours, **theirs} if name.startswith(_prefixes(classifier))]
        stored = theirs.get(f"{classifier[0]}.weight")
        if stored_classes is None:
            stored_classes = 0 if stored is None else stored.shape[0]
        theirs = {name: tensor for name, tensor in theirs.items() if name not in heads}
        theirs |= {name: ours[name] for name in heads if name in ours}
        if stored_classes:
            wanted = getattr(model, "num_classes", 0)
            notes.append(f"the classifier of {source} ({stored_classes} classes) was left out: {wanted} were asked for")
    check_fit(ours, theirs, source=source, classifier=classifier)
    model.load_state_dict(theirs)
    return tuple(notes)


def check_fit(
    ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], *, source: str, classifier: tuple[str, ...] = ("head",)
) -> None:
    """Compare a model's tensors with a file's, entry for entry.

    Raises:
        NamesMismatch: something is missing, left over or of another shape; all of it is listed.
    """
    missing = [name for name in ours if name not in theirs]
    left_over = [name for name in theirs if name not in ours]
    misshapen = [
        f"{name} {tuple(theirs[name].shape)} instead of {tuple(ours[name].shape)}"
        for name in ours
        if name in theirs and theirs[name].shape != ours[name].shape
    ]
    if missing or left_over or misshapen:
        head_only = all(name.startswith(_prefixes(classifier)) for name in [*missing, *left_over, *misshapen])
        hint = "Only the classifier differs: ask for the number of classes you want." if head_only else _sizes(theirs)
        raise NamesMismatch(source, missing=missing, left_over=left_over, misshapen=misshapen, hint=hint)


def _prefixes(layers: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{layer}." for layer in layers)


def _unwrapped(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    inner = tensors.get("state_dict")
    return inner if isinstance(inner, Mapping) else tensors


def _official_name(name: str, family: Family) -> str:
    for pattern, replacement in family.renames:
        if "{stage}" in replacement:
            name = re.sub(pattern, lambda match, text=replacement: text.format(stage=int(match[1]) + 1), name)
        else:
            name = re.sub(pattern, replacement, name)
    return name


def _sizes(state: Mapping[str, Tensor]) -> str:
    try:
        return f"The file holds the weights of {variant_of(state)}."
    except UnknownFormat:
        return ""


def _input_channels(state: Mapping[str, Tensor]) -> int:
    stem = state.get("patch_embed1.proj.weight")
    if stem is None or stem.ndim != 4:
        raise UnknownFormat("there is no patch_embed1.proj.weight of 4 dimensions, so this is no whole VAN")
    return stem.shape[1]


def variant_of(state: Mapping[str, Tensor]) -> str:
    """The size of VAN that official names and shapes make up: ``van_b0`` ... ``van_b6``.

    Raises:
        UnknownFormat: none of the seven.
    """
    depths = [len({name.split(".")[1] for name in state if name.startswith(f"block{s}.")}) for s in (1, 2, 3, 4)]
    embeds = [state.get(f"patch_embed{s}.proj.weight") for s in (1, 2, 3, 4)]
    dims = [weight.shape[0] if weight is not None and weight.ndim else 0 for weight in embeds]
    for variant in VARIANTS.values():
        if list(variant.dims) == dims and list(variant.depths) == depths:
            return variant.name
    known = "; ".join(f"{v.name} {v.dims} {v.depths}" for v in VARIANTS.values())
    raise UnknownFormat(f"channels {dims} with depths {depths} are no VAN; known: {known}")


def _preprocess_of(family: Family, num_classes: int) -> Preprocess:
    imagenet_22k = num_classes > 20_000
    if imagenet_22k or family.name == "mmsegmentation":
        return Preprocess(mean=IMAGENET_MEAN, std=IMAGENET_STD)
    return Preprocess()
