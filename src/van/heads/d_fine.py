"""D-FINE (Peng et al. 2024, arXiv:2410.13842), from transformers: boxes refined as distributions."""

from typing import TYPE_CHECKING, Any

from van.heads.registry import ExportPart, register_head

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def export_part() -> ExportPart:
    """Trace the network up to the scores and boxes of all queries."""
    from van.heads.transformer_detector import query_export

    return query_export(selects_queries=True)


@register_head("d_fine", title="D-FINE", task="detect", export=export_part, extra="transformers")
def create_d_fine(backbone: Any, **options: Any) -> Any:
    """Create an untrained network; options as those of ``van.heads.transformer_detector.TransformerDetector``."""
    from van.heads.transformer_detector import TransformerDetector

    # transformers returns the losses already weighted
    weights = dict.fromkeys(("vfl", "bbox", "giou", "fgl", "ddf"), 1.0)
    network = TransformerDetector(backbone, "D-FINE", "DFine", weights, selects_queries=True, **options)
    network.detector.loss_function = layer_losses
    return network


def layer_losses(
    logits: "Tensor", labels: "list[dict[str, Tensor]]", device: "torch.device", pred_boxes: "Tensor", config: Any,
    outputs_class: "Tensor", outputs_coord: "Tensor", denoising_meta_values: dict[str, Any] | None = None,
    **others: Any,
) -> "tuple[Tensor, dict[str, Tensor], Any]":  # fmt: skip
    """Return D-FINE's losses as transformers computes them, but with each layer's boxes paired with its own corners.

    transformers 5.23 pairs them with the boxes of the layer before, so that the last layer but one has no loss. The
    first of the (N, 1 + layers, Q, ...) outputs are those before the refinement, which have no corners.
    """
    from transformers.loss.loss_d_fine import DFineForObjectDetectionLoss, DFineLoss

    _, losses, auxiliary = DFineForObjectDetectionLoss(
        logits, labels, device, pred_boxes, config, outputs_class[:, 1:], outputs_coord[:, 1:],
        denoising_meta_values=denoising_meta_values, **others,
    )  # fmt: skip
    first: dict[str, Any] = {"logits": outputs_class[:, 0], "pred_boxes": outputs_coord[:, 0].clamp(0, 1)}
    if denoising_meta_values is not None:
        groups = {name: value.split(denoising_meta_values["dn_num_split"], dim=1) for name, value in first.items()}
        first = {name: plain for name, (_, plain) in groups.items()}
        first["dn_auxiliary_outputs"] = [{name: noisy for name, (noisy, _) in groups.items()}]
        first["denoising_meta_values"] = denoising_meta_values
    first_losses = DFineLoss(config).to(device)(first, labels)
    losses = {**losses, **{f"{name}_first": value for name, value in first_losses.items()}}
    return sum(losses.values(), logits.new_zeros(())), losses, auxiliary
