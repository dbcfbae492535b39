"""Every method equals its definition, computed with autograd, and the result of pytorch-grad-cam's own loop."""

import numpy as np
import pytest
import timm
import torch
from torch import nn

from explain.small_models import SMALL_CONVNEXT, SMALL_SWIN, small
from van.errors import ShapeError, UsageError
from van.explain.cam import METHODS, activation_map, record_activations
from van.explain.layers import Layer, find_layer


def maps_of(network, images, classes, *, method="grad-cam", layer=None):
    """Return the map (N, h, w) of one class in each image."""
    layer = layer or find_layer(network)
    with record_activations(layer) as records:
        logits = network(images)
        score = logits[range(len(classes)), list(classes)].sum()
    return activation_map(method, layer, records[0], score, network)


def activations_and_gradients(network, images, classes):
    """Return the activations of a VAN's last block and their gradients, by running the rest of the network here."""
    x = images
    for stage in (1, 2, 3):
        x = getattr(network, f"norm{stage}")(
            getattr(network, f"block{stage}")(getattr(network, f"patch_embed{stage}")(x))
        )
    maps = network.block4(network.patch_embed4(x)).detach().requires_grad_()
    logits = network.head(network.norm4(maps).mean(dim=(2, 3)))
    (gradients,) = torch.autograd.grad(logits[range(len(classes)), list(classes)].sum(), maps)
    return maps.detach(), gradients


def grad_cam_plus_plus(maps, gradients):
    """Equation 19 of the paper, with the score's own derivatives for those of its exponential."""
    total = maps.sum((2, 3), keepdim=True)
    alpha = gradients**2 / (2 * gradients**2 + total * gradients**3 + 1e-6)
    alpha = torch.where(gradients != 0, alpha, 0)
    weights = (gradients.clamp(min=0) * alpha).sum((2, 3), keepdim=True)
    return (weights * maps).sum(1)


def eigen_cam(maps, gradients):
    """The first principal component of the cells, its largest value positive."""
    found = []
    for one in maps:
        cells = one.flatten(1).T
        cells = cells - cells.mean(0)
        _, _, directions = torch.linalg.svd(cells, full_matrices=False)
        values = cells @ directions[0]
        found.append((values * values[values.abs().argmax()].sign()).reshape(one.shape[1:]))
    return torch.stack(found)


def xgrad_cam(maps, gradients):
    weights = (gradients * maps).sum((2, 3), keepdim=True) / (maps.sum((2, 3), keepdim=True) + 1e-7)
    return (weights * maps).sum(1)


DEFINITIONS = {
    "grad-cam": lambda maps, gradients: (gradients.mean((2, 3), keepdim=True) * maps).sum(1),
    "grad-cam++": grad_cam_plus_plus,
    "layer-cam": lambda maps, gradients: (gradients.clamp(min=0) * maps).sum(1),
    "xgrad-cam": xgrad_cam,
    "eigen-cam": eigen_cam,
}


@pytest.mark.parametrize("size", [(96, 96), (101, 67)])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_equals_its_definition_on_van(method, size):
    network = small().network.double()
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    expected = DEFINITIONS[method](*activations_and_gradients(network, images, (1, 3))).clamp(min=0)
    found = maps_of(network, images, (1, 3), method=method)
    assert found.dtype == np.float32
    scale = float(expected.max())
    assert scale > 0
    np.testing.assert_allclose(found / scale, expected.numpy() / scale, rtol=0, atol=1e-5)  # kept in float32


def test_hires_cam_is_zero_before_a_layer_norm():
    """The reason for its absence: the norm is invariant to the scale of a cell, so gradient and cell are orthogonal."""
    network = small().network.double()
    maps, gradients = activations_and_gradients(network, torch.randn(2, 3, 96, 96, dtype=torch.float64), (1, 3))
    each = gradients * maps
    assert (each.sum(1).abs() / each.abs().sum(1)).max() < 1e-4  # what remains is due to the eps of the norm


class TwoLayers(nn.Module):
    """A convolution to two maps, and a linear layer on their means."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 2, 1, bias=False)
        self.linear = nn.Linear(2, 2, bias=False)
        self.convolution.weight.data = torch.tensor([1.0, -1.0]).reshape(2, 1, 1, 1)
        self.linear.weight.data = torch.tensor([[3.0, 1.0], [0.0, 2.0]])

    def forward(self, x):
        return self.linear(self.convolution(x).mean(dim=(2, 3)))


def test_the_map_of_two_layers_equals_the_one_computed_by_hand():
    """Maps x and -x; d score_0 / d maps is (3, 1) / 4 everywhere, so the map is relu(3x - x) / 4 = relu(x) / 2."""
    network = TwoLayers()
    layer = Layer("convolution", network.convolution, network, 1)
    x = torch.tensor([[1.0, -2.0], [3.0, 0.0]])[None, None]
    np.testing.assert_allclose(maps_of(network, x, (0,), layer=layer)[0], [[0.5, 0], [1.5, 0]])
    np.testing.assert_allclose(maps_of(network, x, (1,), layer=layer)[0], [[0, 1.0], [0, 0]])  # relu(-2x) / 4


def test_grad_cam_before_a_pooled_linear_classifier_is_cam():
    """Zhou et al. 2016: the classifier's weights, applied to every cell; a ResNet ends with such a classifier."""
    network = timm.create_model("resnet10t", num_classes=4).eval()
    images = torch.randn(2, 3, 97, 130)
    with torch.no_grad():
        maps = network.forward_features(images)
        cam = torch.einsum("nkhw,nk->nhw", maps, network.fc.weight[[2, 0]]).clamp(min=0) / maps[0, 0].numel()
    np.testing.assert_allclose(maps_of(network, images, (2, 0)), cam.numpy(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("van_b0", {}),
        ("swin_tiny_patch4_window7_224", SMALL_SWIN),
        ("convnext_tiny", SMALL_CONVNEXT),
    ],
)
def test_the_scaled_map_equals_that_of_pytorch_grad_cam(name, options):
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.image import scale_cam_image
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    network = small(name, **options).network
    images = torch.randn(2, 3, 128, 128)
    layer = find_layer(network)
    reshape = (lambda output: output.permute(0, 3, 1, 2)) if name.startswith("swin") else None
    actual = maps_of(network, images, (0, 2))
    with pytorch_grad_cam.GradCAM(network, [layer.module], reshape_transform=reshape) as reference:
        expected = reference(images, targets=[ClassifierOutputTarget(0), ClassifierOutputTarget(2)])
    assert expected.max() > 0.9
    twice = scale_cam_image(scale_cam_image(actual, (128, 128)))  # as pytorch-grad-cam does
    np.testing.assert_allclose(twice, expected, rtol=0, atol=1e-4)


def test_a_score_that_does_not_depend_on_the_layer_is_rejected():
    network = small().network
    layer = find_layer(network)
    with record_activations(layer) as records:
        network(torch.zeros(1, 3, 64, 64))
    with pytest.raises(ShapeError, match="layer stage4"):
        activation_map("grad-cam", layer, records[0], torch.ones((), requires_grad=True) * 2, network)


def test_unknown_methods_and_too_many_cells_are_rejected():
    network = small().network
    layer = find_layer(network, "stage1")
    with record_activations(layer) as records:
        score = network(torch.zeros(1, 3, 320, 320)).sum()
    with pytest.raises(UsageError, match=r"method.*grad-cam.*'gradcam'"):
        activation_map("gradcam", layer, records[0], score, network)
    with pytest.raises(ShapeError, match=r"eigen-cam.*6,400.*stage1.*0\.2 GB"):
        activation_map("eigen-cam", layer, records[0], score, network)
