"""Registration of VAN with timm: ``timm.create_model("van_b0", pretrained=True)``, ``features_only=True`` and the like.

Importing this module imports timm and registers; ``van.registration`` imports it after timm.
"""

from typing import Any, cast

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import FeatureGetterNet
from torch import Tensor, nn

from van.backbones.van import STAGE_INDICES, VAN, van_config
from van.weights.formats import convert_weights
from van.weights.hub import Pretrained, resolve_pretrained
from van.weights.published import VARIANTS

default_cfgs = generate_default_cfgs({f"{name}.in1k": van_config(name) for name in VARIANTS})


def _create_van(name: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build one size with timm's builder, with weights that this package reads and checks."""
    variant = VARIANTS[name]
    features_only = bool(kwargs.get("features_only"))
    features: dict[str, Any] = {"out_indices": STAGE_INDICES, "flatten_sequential": True}
    if kwargs.get("feature_cls") in ("getter", FeatureGetterNet):
        features["norm"] = True  # timm's other extractors return normalized maps, so this one must, too
    options: dict[str, Any] = {"dims": variant.dims, "depths": variant.depths, **kwargs}
    source = resolve_pretrained(name, options) if pretrained else None
    if source is not None:
        options = source.builder_options(options)

    def filter_state_dict(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        weights = source or Pretrained(weights=convert_weights(state, model=name), origin=f"the weights for {name}")
        return weights.matching_state_dict(model, features_only=features_only)

    model = build_model_with_cfg(
        VAN, name, pretrained, pretrained_filter_fn=filter_state_dict, feature_cfg=features, **options
    )
    cast(dict[str, Any], model.pretrained_cfg).pop("state_dict", None)
    return model


def _register(name: str) -> None:
    """Register the function ``name`` of this module with timm; it creates that variant."""

    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return _create_van(name, pretrained, **kwargs)

    create.__name__ = create.__qualname__ = name
    globals()[name] = register_model(create)


for _name in VARIANTS:
    _register(_name)
