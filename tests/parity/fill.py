"""Weights and pictures by rule, so that two implementations can be compared without a download.

``fill(names_and_shapes)`` gives every parameter and buffer of a VAN a value that depends only on its
name in the *official* layout (``patch_embed1.proj.weight`` ...), its shape, and a salt. ``picture``
does the same for an input. numpy's legacy RandomState is frozen, so the numbers never change.
"""

import zlib

import numpy as np


def _rng(name: str, salt: str) -> np.random.RandomState:
    return np.random.RandomState(zlib.crc32(f"{salt}:{name}".encode()))


def value(name: str, shape: tuple[int, ...], salt: str = "van") -> np.ndarray:
    """One tensor, float32 (int64 for ``num_batches_tracked``), by its official name."""
    rng = _rng(name, salt)
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if name.endswith("running_var"):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    if name.endswith(("running_mean", "bias")):
        return (0.1 * rng.standard_normal(shape)).astype(np.float32)
    if "layer_scale" in name:
        return rng.uniform(0.01, 0.05, shape).astype(np.float32)
    if "norm" in name:
        return (1.0 + 0.1 * rng.standard_normal(shape)).astype(np.float32)
    fan_in = max(1, int(np.prod(shape[1:])))
    return (rng.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32)


def picture(shape: tuple[int, ...] = (2, 3, 224, 224), salt: str = "van") -> np.ndarray:
    """A normalised input batch (N, 3, H, W), float32."""
    return _rng(f"picture{shape}", salt).standard_normal(shape).astype(np.float32)
