"""Mask2Former (Cheng et al. 2022, arXiv:2112.01527), from transformers: panoptic segmentation by mask queries."""

from typing import Any

from van.heads.registry import ExportPart, Published, register_head


def export_part() -> ExportPart:
    """Trace the network up to the classes and masks of all queries; masks are cropped to the image in Python."""
    from van.heads.panoptic_segmenter import MaskDecoder, TracedMaskHead

    return ExportPart(
        extract=TracedMaskHead,
        outputs=("class_logits", "mask_logits"),
        decoder=lambda _: MaskDecoder(),
        note="the graph outputs classes and masks of all queries; the session crops the masks to the image in Python",
        fixed_reason="its queries depend on the padded size and the batch size",
    )


@register_head(
    "mask2former",
    title="Mask2Former",
    task="panoptic",
    export=export_part,
    extra="transformers",
    published={
        "van_b2": Published(metrics={"pq": 54.9}),
        "van_b6": Published(metrics={"pq": 58.2}),  # from ImageNet-22K
    },
)
def create_mask2former(
    backbone: Any, *, num_classes: int, queries: int | None = None, channels: int = 256, encoder_layers: int = 6,
    decoder_layers: int = 9, points: int = 12_544, **options: Any,
) -> Any:  # fmt: skip
    """Create an untrained network.

    Args:
        backbone: a VAN.
        num_classes: classes of things and stuff together.
        queries: the most segments per image; if None the paper's, 100, and 200 for van_b6.
        channels: of the feature maps, the masks and the queries, a multiple of 64.
        encoder_layers: number of layers of the pixel decoder, which fuses the feature maps.
        decoder_layers: number of layers of the transformer decoder, which predicts the segments.
        points: number of points of each mask at which the losses are computed.
        options: further fields of transformers' configuration.

    Raises:
        MissingExtra: transformers or scipy is not installed.
        UsageError: an option is unknown, or a size is too small.
    """
    from van.heads.panoptic_segmenter import LEVELS, PanopticSegmenter
    from van.heads.transformers_adapter import check_sizes, create_network

    if queries is None:
        queries = 200 if backbone.pretrained_cfg["architecture"] == "van_b6" else 100
    layers = {"encoder_layers": encoder_layers, "decoder_layers": decoder_layers}
    check_sizes({"queries": queries, "points": points, **layers}, channels=channels)
    fields = {
        "num_labels": num_classes,
        "feature_size": channels,
        "mask_feature_size": channels,
        "hidden_dim": channels,
        "encoder_feedforward_dim": 4 * channels,
        "dim_feedforward": 8 * channels,
        "encoder_layers": encoder_layers,
        "decoder_layers": decoder_layers + 1,  # transformers counts the prediction before the first layer, too
        "num_queries": queries,
        "train_num_points": points,
    }
    names = ("Mask2FormerConfig", "Mask2FormerForUniversalSegmentation")
    segmenter = create_network(backbone, "Mask2Former", *names, levels=LEVELS, fields={**fields, **options})
    # transformers returns the losses already weighted
    weights = dict.fromkeys(("cross_entropy", "mask", "dice"), 1.0)
    return PanopticSegmenter(backbone, segmenter, num_classes=num_classes, loss_weights=weights)
