"""THE picture -> tensor rule: one frozen object that trains, evaluates, exports and serves.

It travels inside every checkpoint, because the usual bug in this field is two resizes.
Classification looks at a square from the middle (``Preprocess``); detection and segmentation look at
the whole picture (``WholePreprocess``).
Shapes: a picture is H x W RGB; a tensor is (3, size_px, size_px), or (3, h, w) of a whole picture, float32.
PyTorch is imported where a tensor is made: a process that only crops pictures does without its 270 MB.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

from PIL import Image

from van.errors import ShapeError
from van.pictures import Window, to_rgb

if TYPE_CHECKING:
    from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)

Interpolation = Literal["bicubic", "bilinear", "nearest", "lanczos"]
_TIMM_NAMES = ("input_size", "crop_pct", "interpolation", "mean", "std")
_MAX_ASPECT = 16.0
"""Beyond this the middle is cut out before resizing, or a 1 x 10,000 picture would need gigabytes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Colours:
    """What both rules do to colours, and how they check and store themselves."""

    interpolation: Interpolation = "bicubic"
    mean: tuple[float, float, float] = HALF
    std: tuple[float, float, float] = HALF

    def __post_init__(self) -> None:
        if self.interpolation not in get_args(Interpolation):
            known = ", ".join(get_args(Interpolation))
            raise ShapeError(f"interpolation is {self.interpolation!r}; known: {known}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if not isinstance(values, tuple) or len(values) != 3 or not all(map(_is_finite, values)):
                raise ShapeError(f"{name} is {values!r}; wanted three finite numbers, for red, green and blue")
        if min(self.std) <= 0:
            raise ShapeError(f"std is {self.std}; wanted three positive numbers")

    def normalise(self, pictures: Tensor) -> Tensor:
        """(..., 3, H, W) on the scale of [0, 1] to what the network reads."""
        import torch

        mean, std = (torch.tensor(v, dtype=pictures.dtype, device=pictures.device) for v in (self.mean, self.std))
        return (pictures - mean[:, None, None]).div_(std[:, None, None])

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint's header."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The object that ``to_dict`` came from.

        Raises:
            ShapeError: a value or a name does not belong, or a name is missing: no default is right by chance.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        if set(values) != set(known):
            raise ShapeError(f"preprocess holds {', '.join(map(str, values)) or 'nothing'}; wanted {', '.join(known)}")
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**plain)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocess(_Colours):
    """Resize the shorter side, crop the middle, scale to [0, 1], normalise.

    The defaults are the released VAN's: 248 -> 224 bicubic, mean and deviation 0.5.

    Args:
        size_px: side of the square that the network sees.
        crop_fraction: share of the resized shorter side that the crop keeps.
        interpolation: of the resize, with antialiasing.
        mean, std: per channel, on the scale of [0, 1].
    """

    size_px: int = 224
    crop_fraction: float = 0.9

    def __post_init__(self) -> None:
        _want_pixels("size_px", self.size_px)
        if not _is_finite(self.crop_fraction) or not 0 < self.crop_fraction <= 1:
            raise ShapeError(f"crop_fraction is {self.crop_fraction!r}; wanted more than 0 and at most 1")
        super().__post_init__()

    @property
    def resize_px(self) -> int:
        """The shorter side after the resize."""
        return math.floor(self.size_px / self.crop_fraction)

    def crop(self, picture: Image.Image) -> Image.Image:
        """Resize and crop: the (size_px, size_px) RGB picture that the network sees.

        Raises:
            ShapeError: the picture has no pixels.
        """
        if 0 in picture.size:
            raise ShapeError(f"a picture of {picture.width}x{picture.height} has no pixels")
        picture, middle = to_rgb(picture), _middle(picture.size)
        if middle != (0, 0, *picture.size):
            picture = picture.crop(middle)
        width, height = self._resized(picture.size)
        if picture.size != (width, height):
            picture = picture.resize((width, height), Image.Resampling[self.interpolation.upper()])
        left, top = round((width - self.size_px) / 2), round((height - self.size_px) / 2)
        return picture.crop((left, top, left + self.size_px, top + self.size_px))

    def window(self, size: tuple[int, int]) -> Window:
        """What the network sees of a picture with ``size`` rows and columns: where the crop's edges lie in it.

        Raises:
            ShapeError: the picture has no pixels.
        """
        if 0 in size:
            raise ShapeError(f"a picture of {size[1]}x{size[0]} has no pixels")
        left, top, right, bottom = _middle(size[::-1])
        across, down = right - left, bottom - top
        width, height = self._resized((across, down))
        start = round((width - self.size_px) / 2), round((height - self.size_px) / 2)
        x, y = across / width, down / height
        return (
            left + start[0] * x,
            top + start[1] * y,
            left + (start[0] + self.size_px) * x,
            top + (start[1] + self.size_px) * y,
        )

    def _resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height after the resize."""
        short, long = sorted(size)
        scaled = int(self.resize_px * long / short)
        return (self.resize_px, scaled) if size[0] <= size[1] else (scaled, self.resize_px)

    def __call__(self, picture: Image.Image) -> Tensor:
        """A picture of any size to (3, size_px, size_px), float32."""
        return self.normalise(to_tensor(self.crop(picture)))

    @classmethod
    def from_timm(cls, config: Mapping[str, Any]) -> Preprocess:
        """The same rule as a timm model's ``pretrained_cfg``.

        Raises:
            ShapeError: the model wants something else than a square from the middle of an RGB picture.
        """
        missing = [name for name in _TIMM_NAMES if name not in config]
        if missing:
            raise ShapeError(f"the model's pretrained_cfg lacks {', '.join(missing)}")
        channels, height, width = config["input_size"]
        if channels != 3 or height != width:
            raise ShapeError(f"input_size is {config['input_size']}; wanted (3, side, side)")
        if config.get("crop_mode", "center") != "center":
            raise ShapeError(f"crop_mode is {config['crop_mode']!r}; wanted 'center'")
        return cls(
            size_px=width,
            crop_fraction=config["crop_pct"],
            interpolation=config["interpolation"],
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class WholePreprocess(_Colours):
    """Resize the whole picture, its aspect kept, scale to [0, 1], normalise.

    Args:
        short_px: its shorter side afterwards,
        long_px: unless the longer one would exceed this.
        interpolation: of the resize, with antialiasing.
        mean, std: per channel, on the scale of [0, 1].
    """

    interpolation: Interpolation = "bilinear"
    short_px: int = 800
    long_px: int = 1333

    def __post_init__(self) -> None:
        _want_pixels("short_px", self.short_px)
        _want_pixels("long_px", self.long_px)
        if self.long_px < self.short_px:
            raise ShapeError(f"long_px is {self.long_px} and short_px {self.short_px}; wanted at least as much")
        super().__post_init__()

    def seen(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns that the network sees of a picture with ``size`` rows and columns.

        Raises:
            ShapeError: the picture has no pixels.
        """
        if 0 in size:
            raise ShapeError(f"a picture of {size[1]}x{size[0]} has no pixels")
        factor = min(self.short_px / min(size), self.long_px / max(size))
        rows, columns = (max(1, round(side * factor)) for side in size)
        return rows, columns

    def resize(self, picture: Image.Image) -> Image.Image:
        """The RGB picture that the network sees."""
        rows, columns = self.seen((picture.height, picture.width))
        return to_rgb(picture).resize((columns, rows), Image.Resampling[self.interpolation.upper()])

    def __call__(self, picture: Image.Image) -> Tensor:
        """A picture of any size to (3, rows, columns), float32."""
        return self.normalise(to_tensor(self.resize(picture)))

    def window(self, size: tuple[int, int]) -> Window:
        """What the network sees of a picture with ``size`` rows and columns: all of it.

        Raises:
            ShapeError: the picture has no pixels.
        """
        self.seen(size)
        return 0.0, 0.0, float(size[1]), float(size[0])

    def at_own_size(self, picture: Image.Image) -> Tensor:
        """The same without the resize, for a network that sees the picture through a sliding window."""
        return self.normalise(to_tensor(to_rgb(picture)))


def read_preprocess(values: Mapping[str, Any]) -> Preprocess | WholePreprocess:
    """The rule whose ``to_dict`` gave ``values``.

    Raises:
        ShapeError: see ``from_dict``.
    """
    return WholePreprocess.from_dict(values) if "short_px" in values else Preprocess.from_dict(values)


def to_tensor(picture: Image.Image) -> Tensor:
    """An RGB picture to (3, H, W), float32 in [0, 1]."""
    import torch

    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return pixels.view(picture.height, picture.width, 3).permute(2, 0, 1).float().div_(255)


def _middle(size: tuple[int, int]) -> tuple[int, int, int, int]:
    """What is kept of a picture of that width and height before the resize: all of it, unless it is a mere strip."""
    short, long = sorted(size)
    if long <= _MAX_ASPECT * short:
        return 0, 0, *size
    kept = int(_MAX_ASPECT * short)
    kept += (long - kept) % 2  # as much goes from either end, so that the middle stays the middle
    width, height = (min(side, kept) for side in size)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return left, top, left + width, top + height


def _want_pixels(name: str, value: object) -> None:
    if not isinstance(value, int) or value < 1:
        raise ShapeError(f"{name} is {value!r}; wanted a whole number, at least 1")


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
