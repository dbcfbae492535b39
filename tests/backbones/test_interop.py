import timm
import torch
from torch import nn

import van
from van.weights.published import VARIANTS

assert van  # registers the names with timm


def images(rows: int = 64, columns: int = 64) -> torch.Tensor:
    return torch.randn(2, 3, rows, columns, generator=torch.Generator().manual_seed(1))


def assert_every_parameter_has_a_gradient(model: nn.Module) -> None:
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_segmentation_models_pytorch_accepts_van_as_an_encoder(subtests):
    for decoder in ["Unet", "FPN"]:
        with subtests.test(decoder=str(decoder)):
            import segmentation_models_pytorch as smp

            model = getattr(smp, decoder)("tu-van_b0", encoder_weights=None, classes=3)
            assert model.encoder.out_channels[-4:] == list(VARIANTS["van_b0"].dims)
            out = model(images(96, 64))
            assert out.shape == (2, 3, 96, 64)
            out.square().mean().backward()
            assert_every_parameter_has_a_gradient(model)


def test_torchvisions_feature_pyramid_accepts_the_stages(subtests):
    for options in [{"features_only": True}, {"num_classes": 0, "global_pool": ""}]:
        with subtests.test(options=str(options)):
            from torchvision.models.detection.backbone_utils import BackboneWithFPN

            body = timm.create_model("van_b0", **options)
            layers = {f"norm{stage}": str(stage) for stage in (1, 2, 3, 4)}
            backbone = BackboneWithFPN(body, layers, list(VARIANTS["van_b0"].dims), 64)
            maps = backbone(images(65, 97))
            assert [tuple(m.shape) for m in maps.values()][:4] == [
                (2, 64, 17, 25), (2, 64, 9, 13), (2, 64, 5, 7), (2, 64, 3, 4),
            ]  # fmt: skip
            sum(m.square().mean() for m in maps.values()).backward()
            assert_every_parameter_has_a_gradient(backbone)


def test_torchvisions_detector_accepts_the_features():
    from torchvision.models.detection import RetinaNet
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.ops import FeaturePyramidNetwork

    class Backbone(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = timm.create_model("van_b0", features_only=True, feature_cls="dict")
            self.fpn = FeaturePyramidNetwork(self.body.feature_info.channels(), 32)
            self.out_channels = 32

        def forward(self, x):
            return self.fpn(self.body(x))

    anchors = AnchorGenerator(tuple((size,) for size in (16, 32, 64, 128)), ((1.0,),) * 4)
    model = RetinaNet(Backbone(), num_classes=2, anchor_generator=anchors, min_size=64, max_size=64)
    target = {"boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]]), "labels": torch.tensor([1])}
    losses = model(list(images()), [target, target])
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert_every_parameter_has_a_gradient(model)


def test_transformers_accepts_van_as_a_backbone():
    from transformers import TimmBackbone, TimmBackboneConfig

    torch.manual_seed(0)
    config = TimmBackboneConfig(backbone="van_b0", out_indices=[1, 2, 3], use_pretrained_backbone=False)
    backbone = TimmBackbone(config)
    assert backbone.channels == [64, 160, 256]
    out = backbone(images())
    assert [tuple(m.shape) for m in out.feature_maps] == [(2, 64, 8, 8), (2, 160, 4, 4), (2, 256, 2, 2)]
    sum(m.square().mean() for m in out.feature_maps).backward()
    assert_every_parameter_has_a_gradient(backbone)
