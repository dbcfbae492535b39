"""The registry of heads. A head is one file: its builder, its layers of classes, its export, its published sizes.

The files do not import torch, torchvision or transformers at their top, so that ``--help`` and error messages can list
heads at once; their functions import what they need. To add a head, write ``van/heads/my_head.py`` with a builder under
``@register_head`` and import it in ``van/heads/__init__.py``; a package of your own names its module under the entry
point group ``van.heads`` instead. ``tests/heads/test_contract.py`` sends every registered head through training,
checkpoints, prediction and export.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from van.errors import UsageError
from van.registry import Registry
from van.weights.published import VARIANTS

if TYPE_CHECKING:
    from torch import Tensor, nn

    from van.heads.network import Size


class Decoder(Protocol):
    """The post-processing of one head, for files that hold the rest of the network."""

    def padded_size(self, sizes: "Sequence[Size]") -> "Size":
        """Return the rows and columns to which images of these sizes are padded for one batch."""
        ...

    def __call__(
        self, outputs: "Sequence[Tensor]", sizes: "Sequence[Size]", padded_size: "Size"
    ) -> "list[dict[str, Tensor]]":
        """Return what the network in PyTorch returns for each image, in pixels of the image without its padding."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportPart:
    """How networks with one head are exported in two parts: the traced graph, and the post-processing outside of it.

    The graph has everything up to the scores of all anchors or queries, for images padded to a common size. The rest
    (selecting the best, non-maximum suppression) has sizes that depend on the image and costs little; the session
    computes it with the functions that the network in PyTorch uses, so that predictions are the same.

    Args:
        extract: returns the module to export; it maps padded images (N, 3, R, C) to ``outputs``.
        outputs: their names, in order.
        decoder: makes the post-processing from a file's header: its ``model``, ``model_options`` and ``class_names``.
        note: what the session computes in Python, for the user.
        fixed_reason: why the input sizes cannot be dynamic; empty if they can.
        takes_sizes: whether the module also takes the images' sizes (N, 2); with dynamic sizes it then takes one image.
        compare_outputs: whether verification compares ``outputs`` too, because an image may have no detection.
        unfiltered: returns the detections of any score for one image (3, H, W) by the network in PyTorch, with the
            names of ``outputs``; verification compares them with the graph's.
    """

    extract: "Callable[[nn.Module], nn.Module]"
    outputs: tuple[str, ...]
    decoder: Callable[[Any], Decoder]
    note: str
    fixed_reason: str = ""
    takes_sizes: bool = False
    compare_outputs: bool = False
    unfiltered: "Callable[[nn.Module, Tensor], dict[str, Tensor]] | None" = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """What the paper reports for a head on one backbone; None where it does not say.

    Args:
        millions: parameters of the whole model, in millions.
        gmacs: multiply-accumulates of an image of ``Head.published_size``, in billions.
        metrics: in percent, by the names of ``van eval``.
    """

    millions: float | None = None
    gmacs: float | None = None
    metrics: Mapping[str, float]


Builder = Callable[..., Any]
"""Maps a VAN without classifier, ``num_classes`` and the head's options by keyword to an untrained network, which has
the VAN at ``backbone`` and the names of the layers that depend on the number of classes at ``class_layers``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Head:
    """A head for detection or segmentation.

    Args:
        name: in checkpoints and on the command line.
        title: as its paper calls it.
        task: that it is for.
        build: creates the network.
        export: makes the part to export; None exports the whole network, which returns logits.
        extra: the extra of this package that it needs; empty if none.
        backbone_options: default options of the VAN.
        pools_globally: whether BatchNorm layers of it see one pixel per image, so that a step needs two images.
        public_prefix: of tensor names by which mmsegmentation's checkpoints of it are detected; empty if none exist.
        published: what the paper reports, by backbone.
        published_size: rows and columns of the image for the published multiply-accumulates.
    """

    name: str
    title: str
    task: str
    build: Builder
    export: Callable[[], ExportPart] | None = None
    extra: str = ""
    backbone_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    pools_globally: bool = False
    public_prefix: str = ""
    published: Mapping[str, Published] = dataclasses.field(default_factory=dict)
    published_size: tuple[int, int] | None = None


HEADS: Registry[Head] = Registry("head", group="van.heads")
"""All heads by name."""


def register_head(name: str, *, title: str, task: str, **facts: Any) -> Callable[[Builder], Builder]:
    """Register the decorated builder as the head ``name``; arguments as those of ``Head``."""

    def register(build: Builder) -> Builder:
        HEADS.add(name, Head(name=name, title=title, task=task, build=build, **facts))
        return build

    return register


def heads_of(task: str) -> tuple[str, ...]:
    """Return the names of the heads for a task, in the order of registration."""
    return tuple(name for name, head in HEADS.items() if head.task == task)


def find_export_part(options: Mapping[str, Any]) -> ExportPart | None:
    """Return the part to export of a network with these options; None if it is exported whole or not at all."""
    head = HEADS.get(options.get("head", ""))
    return None if head is None or head.export is None else head.export()


def create_model(name: str, *, num_classes: int, options: Mapping[str, Any] | None = None) -> "nn.Module":
    """Create an untrained network: any timm model, or VAN with a head for detection or segmentation.

    Args:
        name: a timm model name; with a head, one of VAN's.
        num_classes: outputs of the classifier, or classes of the head without a background.
        options: further keyword arguments of the network; with ``head``, one of ``HEADS``, those of ``VAN`` are the
            backbone's and all others the head's.

    Raises:
        UsageError: the model or head is unknown, or the network does not accept the options.
    """
    from van.backbones.van import VAN, create_van

    given = dict(options or {})
    of_van = inspect.signature(VAN).parameters
    try:
        if "head" not in given:
            if name in VARIANTS and all(key in of_van for key in given):
                return create_van(name, num_classes=num_classes, **given)
            import timm  # which takes seconds, and VAN does without

            if not timm.is_model(name):
                raise UsageError(unknown_model_message(name))
            return timm.create_model(name, num_classes=num_classes, **given)
        head = HEADS.find(given.pop("head"))
        if name not in VARIANTS:
            raise UsageError(f"backbone: expected one of {', '.join(VARIANTS)}, got {name!r}")
        if num_classes < 1:
            raise UsageError(f"num_classes: expected at least 1, got {num_classes}")
        of_backbone = {key: given.pop(key) for key in of_van if key in given}
        backbone = create_van(name, num_classes=0, **{**head.backbone_options, **of_backbone})
        return head.build(backbone, num_classes=num_classes, **given)
    except (TypeError, RuntimeError) as error:  # an unknown option, or a tag that timm does not know
        raise UsageError(f"{name}: cannot create the model with the options {given}: {error}") from error


def unknown_model_message(name: str) -> str:
    """Return the error message for a name that is neither a file nor a model."""
    return f"model: expected a file, {', '.join(VARIANTS)} or a timm model with public weights, got {name!r}"
