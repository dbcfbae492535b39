"""Image preprocessing: the one rule from an image to a tensor that training, evaluation, export and serving share.

The rule is stored in every checkpoint, because a different resize at deployment is the usual cause of lost accuracy.
Classification uses a center crop (``CenterCropPreprocess``); detection and segmentation use the whole image
(``ResizePreprocess``).
Shapes: an image is H x W RGB; a tensor is (3, image_size, image_size), or (3, h, w) of a whole image, float32.
PyTorch is imported where a tensor is made: a process that only crops images saves its 270 MB of memory.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

from PIL import Image

from van.errors import ShapeError
from van.images import Box, to_rgb

if TYPE_CHECKING:
    from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)

Interpolation = Literal["bicubic", "bilinear", "nearest", "lanczos"]
_TIMM_NAMES = ("input_size", "crop_pct", "interpolation", "mean", "std")
_MAX_ASPECT = 16.0
"""Longer images are center-cropped to this aspect ratio before the resize: a 1 x 10,000 one would need gigabytes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Normalization:
    """Interpolation, mean and standard deviation of both rules, with their validation and serialization."""

    interpolation: Interpolation = "bicubic"
    mean: tuple[float, float, float] = HALF
    std: tuple[float, float, float] = HALF

    def __post_init__(self) -> None:
        if self.interpolation not in get_args(Interpolation):
            known = ", ".join(get_args(Interpolation))
            raise ShapeError(f"interpolation: expected one of {known}, got {self.interpolation!r}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if not isinstance(values, tuple) or len(values) != 3 or not all(map(_is_finite, values)):
                raise ShapeError(f"{name}: expected three finite numbers, for red, green and blue, got {values!r}")
        if min(self.std) <= 0:
            raise ShapeError(f"std: expected three positive numbers, got {self.std}")

    def normalize(self, images: Tensor) -> Tensor:
        """Normalize images (..., 3, H, W) in [0, 1] by mean and standard deviation."""
        import torch

        mean, std = (torch.tensor(v, dtype=images.dtype, device=images.device) for v in (self.mean, self.std))
        return (images - mean[:, None, None]).div_(std[:, None, None])

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for a checkpoint's header."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the rule that ``to_dict`` gave ``values`` for.

        Raises:
            ShapeError: a value is invalid, or a name is unknown or missing: a default would hide a wrong resize.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        if set(values) != set(known):
            raise ShapeError(
                f"preprocess: expected the fields {', '.join(known)}, got {', '.join(map(str, values)) or 'none'}"
            )
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**plain)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CenterCropPreprocess(_Normalization):
    """Resize the shorter side, crop the middle, scale to [0, 1], normalize.

    The defaults are the released VAN's: 248 -> 224 bicubic, mean and standard deviation 0.5.

    Args:
        image_size: side of the network's input in pixels.
        crop_fraction: fraction of the resized shorter side that the crop keeps.
        interpolation: of the resize, with antialiasing.
        mean, std: per channel, on the scale of [0, 1].
    """

    image_size: int = 224
    crop_fraction: float = 0.9

    def __post_init__(self) -> None:
        _check_side("image_size", self.image_size)
        if not _is_finite(self.crop_fraction) or not 0 < self.crop_fraction <= 1:
            raise ShapeError(f"crop_fraction: expected more than 0 and at most 1, got {self.crop_fraction!r}")
        super().__post_init__()

    @property
    def resize_size(self) -> int:
        """The shorter side after the resize, in pixels."""
        return math.floor(self.image_size / self.crop_fraction)

    def crop(self, image: Image.Image) -> Image.Image:
        """Resize and crop to the (image_size, image_size) RGB image that the network receives.

        Raises:
            ShapeError: the image has no pixels.
        """
        _check_not_empty((image.height, image.width))
        image, limited = to_rgb(image), _limit_aspect(image.size)
        if limited != (0, 0, *image.size):
            image = image.crop(limited)
        width, height = self._resized(image.size)
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling[self.interpolation.upper()])
        left, top = round((width - self.image_size) / 2), round((height - self.image_size) / 2)
        return image.crop((left, top, left + self.image_size, top + self.image_size))

    def crop_box(self, size: tuple[int, int]) -> Box:
        """Return the box that the crop covers in an image of ``size`` (rows, columns), in pixels of that image.

        Raises:
            ShapeError: the image has no pixels.
        """
        _check_not_empty(size)
        left, top, right, bottom = _limit_aspect(size[::-1])
        width, height = right - left, bottom - top
        resized_width, resized_height = self._resized((width, height))
        crop_left, crop_top = (round((side - self.image_size) / 2) for side in (resized_width, resized_height))
        x, y = width / resized_width, height / resized_height
        return (
            left + crop_left * x,
            top + crop_top * y,
            left + (crop_left + self.image_size) * x,
            top + (crop_top + self.image_size) * y,
        )

    def _resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return width and height after the resize."""
        short, long = sorted(size)
        scaled = int(self.resize_size * long / short)
        return (self.resize_size, scaled) if size[0] <= size[1] else (scaled, self.resize_size)

    def __call__(self, image: Image.Image) -> Tensor:
        """Convert an image of any size to a tensor (3, image_size, image_size), float32."""
        return self.normalize(to_tensor(self.crop(image)))

    @classmethod
    def from_timm(cls, config: Mapping[str, Any]) -> CenterCropPreprocess:
        """Return the rule that a timm model's ``pretrained_cfg`` describes.

        Raises:
            ShapeError: the model needs something other than a square center crop of an RGB image.
        """
        missing = [name for name in _TIMM_NAMES if name not in config]
        if missing:
            raise ShapeError(f"pretrained_cfg: expected {', '.join(_TIMM_NAMES)}, missing {', '.join(missing)}")
        channels, height, width = config["input_size"]
        if channels != 3 or height != width:
            raise ShapeError(f"input_size: expected (3, side, side), got {config['input_size']}")
        if config.get("crop_mode", "center") != "center":
            raise ShapeError(f"crop_mode: expected 'center', got {config['crop_mode']!r}")
        return cls(
            image_size=width,
            crop_fraction=config["crop_pct"],
            interpolation=config["interpolation"],
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResizePreprocess(_Normalization):
    """Resize the whole image with its aspect ratio kept, scale to [0, 1], normalize.

    Args:
        min_size: the shorter side after the resize, in pixels; less where the longer side would exceed ``max_size``.
        max_size: the most that the longer side may have, in pixels.
        interpolation: of the resize, with antialiasing.
        mean, std: per channel, on the scale of [0, 1].
    """

    interpolation: Interpolation = "bilinear"
    min_size: int = 800
    max_size: int = 1333

    def __post_init__(self) -> None:
        _check_side("min_size", self.min_size)
        _check_side("max_size", self.max_size)
        if self.max_size < self.min_size:
            raise ShapeError(f"max_size: expected at least min_size ({self.min_size}), got {self.max_size}")
        super().__post_init__()

    def resized_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return rows and columns of an image of ``size`` (rows, columns) after the resize.

        Raises:
            ShapeError: the image has no pixels.
        """
        _check_not_empty(size)
        factor = min(self.min_size / min(size), self.max_size / max(size))
        rows, columns = (max(1, round(side * factor)) for side in size)
        return rows, columns

    def resize(self, image: Image.Image) -> Image.Image:
        """Resize an image of any mode to the RGB image that the network receives."""
        rows, columns = self.resized_size((image.height, image.width))
        return to_rgb(image).resize((columns, rows), Image.Resampling[self.interpolation.upper()])

    def __call__(self, image: Image.Image) -> Tensor:
        """Convert an image of any size to a tensor (3, rows, columns), float32."""
        return self.normalize(to_tensor(self.resize(image)))

    def crop_box(self, size: tuple[int, int]) -> Box:
        """Return the box of the whole image of ``size`` (rows, columns), because nothing is cropped.

        Raises:
            ShapeError: the image has no pixels.
        """
        _check_not_empty(size)
        return 0.0, 0.0, float(size[1]), float(size[0])

    def without_resize(self, image: Image.Image) -> Tensor:
        """Convert an image to a tensor (3, H, W) without the resize, for sliding-window inference."""
        return self.normalize(to_tensor(to_rgb(image)))


def read_preprocess(values: Mapping[str, Any]) -> CenterCropPreprocess | ResizePreprocess:
    """Return the rule, of either kind, whose ``to_dict`` gave ``values``.

    Raises:
        ShapeError: see ``from_dict``.
    """
    return ResizePreprocess.from_dict(values) if "min_size" in values else CenterCropPreprocess.from_dict(values)


def to_tensor(image: Image.Image) -> Tensor:
    """Convert an RGB image to a tensor (3, H, W), float32 in [0, 1]."""
    import torch

    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(image.height, image.width, 3).permute(2, 0, 1).float().div_(255)


def _limit_aspect(size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the centered box of an image of (width, height) whose aspect ratio is at most ``_MAX_ASPECT``."""
    short, long = sorted(size)
    if long <= _MAX_ASPECT * short:
        return 0, 0, *size
    kept = int(_MAX_ASPECT * short)
    kept += (long - kept) % 2  # both ends lose the same number of pixels, so that the center stays the center
    width, height = (min(side, kept) for side in size)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return left, top, left + width, top + height


def _check_side(name: str, value: object) -> None:
    if not isinstance(value, int) or value < 1:
        raise ShapeError(f"{name}: expected an integer of at least 1, got {value!r}")


def _check_not_empty(size: tuple[int, int]) -> None:
    if 0 in size:
        raise ShapeError(f"image: expected at least 1x1 pixels, got {size[1]}x{size[0]} (width x height)")


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
