"""Build a TensorRT engine from an exported ONNX file and, where there is a GPU, hold its answers against the file's.

    python examples/tensorrt_engine.py digits.onnx --out digits.engine --compute-capability 8.9
    python examples/tensorrt_engine.py digits.onnx --out digits.engine --compare digits/val/7

TensorRT for RTX (``pip install tensorrt-rtx``) builds for a GPU that is not there when it is told which;
``--runtime tensorrt`` (``pip install tensorrt``) builds for the one in the machine. Precision is the file's own:
float16 comes from ``van export --half``. Labels and preprocessing stay in the ONNX file: keep both together.

Building was tried on a machine without a GPU. Answering and comparing were not tried, nor was any time measured.
TensorRT for RTX 1.7 does not read Faster and Mask R-CNN: it has no NonZero.
Shapes: the file's first input is ``pictures`` (N, 3, rows, columns) in float32.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from van.checkpoint import atomic_path
from van.errors import CheckpointError, UsageError, VanError
from van.export.header import check_seal

RUNTIMES = {"tensorrt_rtx": "tensorrt_rtx_bindings", "tensorrt": "tensorrt"}
"""The modules behind the names; ``tensorrt_rtx`` itself only hands on its bindings."""


def build(onnx: Path, *, runtime: Any, compute_capability: str | None, most: int, sizes: tuple[int, int]) -> memoryview:
    """The engine as TensorRT serialises it.

    Args:
        onnx: what ``van export`` wrote.
        runtime: one of the modules in ``RUNTIMES``.
        compute_capability: of the GPU that it is for, such as 8.9; the one in the machine if None.
        most: pictures at once, where their number is free.
        sizes: rows and columns, where they are free.

    Raises:
        CheckpointError: TensorRT cannot read the file or build an engine of it.
        UsageError: it cannot build for that GPU, or without one.
    """
    log = runtime.Logger(runtime.Logger.ERROR)
    try:
        builder = runtime.Builder(log)
    except TypeError as error:  # what its binding makes of a null pointer
        raise UsageError("TensorRT finds no GPU here; try --runtime tensorrt_rtx --compute-capability 8.9") from error
    network = builder.create_network(0)
    parser = runtime.OnnxParser(network, log)
    if not parser.parse(onnx.read_bytes()):
        raise CheckpointError(f"{onnx}: TensorRT cannot read it ({parser.get_error(0).desc()}); other runtimes may")
    config = builder.create_builder_config()
    if compute_capability is not None:
        _aim(config, runtime, compute_capability)
    profile = builder.create_optimization_profile()
    for place in range(network.num_inputs):
        given = network.get_input(place)
        if -1 in tuple(given.shape):
            profile.set_shape(given.name, *(_filled(tuple(given.shape), count, sizes) for count in (1, most, most)))
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise CheckpointError(f"{onnx}: TensorRT builds no engine of it; what it says stands above")
    return memoryview(engine)


def largest_difference(engine: Path, onnx: Path, pictures: Sequence[str], *, runtime: Any) -> float:
    """Of the engine's first output from the ONNX file's, over these pictures; as a share of the largest number."""
    from van.export.formats import open_session
    from van.pictures import read_picture

    session = open_session(onnx)
    (name, shape), *_ = session.header.inputs.items()
    loaded = runtime.Runtime(runtime.Logger(runtime.Logger.ERROR)).deserialize_cuda_engine(engine.read_bytes())
    context = loaded.create_execution_context()
    worst = 0.0
    for path in pictures:
        seen = session.header.preprocess(read_picture(path))[None].repeat(shape[0] or 1, 1, 1, 1)
        right = session.run(seen)
        context.set_input_shape(name, tuple(seen.shape))
        found = [torch.empty_like(each, device="cuda") for each in right]
        given = seen.cuda().contiguous()
        for tensor_name, tensor in zip((name, *session.header.outputs), (given, *found), strict=True):
            context.set_tensor_address(tensor_name, tensor.data_ptr())
        context.execute_async_v3(torch.cuda.current_stream().cuda_stream)
        torch.cuda.synchronize()
        worst = max(worst, ((found[0].cpu() - right[0]).abs().max() / right[0].abs().max()).item())
    return worst


def main(words: Sequence[str] | None = None) -> int:
    """Build, write, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("onnx", type=Path, help="a file that van export wrote")
    parser.add_argument("--out", type=Path, required=True, help="the engine")
    parser.add_argument("--runtime", choices=RUNTIMES, default="tensorrt_rtx")
    parser.add_argument("--compute-capability", help="of the GPU that it is for, such as 8.9; tensorrt_rtx only")
    parser.add_argument("--most", type=int, default=16, help="pictures at once, where their number is free")
    parser.add_argument("--sizes", type=int, nargs=2, default=(512, 512), metavar=("ROWS", "COLUMNS"))
    parser.add_argument("--compare", nargs="+", default=[], metavar="PICTURE")
    asked = parser.parse_args(words)
    try:
        runtime = importlib.import_module(RUNTIMES[asked.runtime])
    except ImportError:
        print(f"this needs the package {asked.runtime}: pip install {asked.runtime.replace('_', '-')}", file=sys.stderr)
        return 1
    try:
        if asked.compare and not torch.cuda.is_available():
            raise UsageError("--compare needs a GPU, and PyTorch sees none; leave it out to build the engine only")
        check_seal(asked.onnx)
        engine = build(
            asked.onnx,
            runtime=runtime,
            compute_capability=asked.compute_capability,
            most=asked.most,
            sizes=tuple(asked.sizes),
        )
        with atomic_path(asked.out) as temporary:
            temporary.write_bytes(engine)
        print(f"{asked.out}: {len(engine) / 1e6:.1f} MB, by {asked.runtime} {runtime.__version__}")
        if asked.compare:
            worst = largest_difference(asked.out, asked.onnx, asked.compare, runtime=runtime)
            print(f"largest difference from {asked.onnx}: {worst:.2g} of the largest output")
    except VanError as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


def _aim(config: Any, runtime: Any, compute_capability: str) -> None:
    kinds = getattr(runtime, "ComputeCapability", None)
    wanted = f"SM{compute_capability.replace('.', '')}"
    if kinds is None or not hasattr(kinds, wanted):
        known = [name[2:-1] + "." + name[-1] for name in dir(kinds) if name.startswith("SM")] if kinds else ["none"]
        name = runtime.__name__.partition("_bindings")[0]
        raise UsageError(f"--compute-capability is {compute_capability}; {name} builds for {', '.join(known)}")
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(kinds, wanted), 0)


def _filled(shape: tuple[int, ...], count: int, sizes: tuple[int, int]) -> tuple[int, ...]:
    """The shape with numbers where it is free."""
    given = (count, 3, *sizes)
    return tuple(given[place] if side < 0 else side for place, side in enumerate(shape))


if __name__ == "__main__":
    sys.exit(main())
