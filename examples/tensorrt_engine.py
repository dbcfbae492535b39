"""Build a TensorRT engine from an exported ONNX file and, on a GPU, compare its outputs with those of the file.

    python examples/tensorrt_engine.py digits.onnx --out digits.engine --compute-capability 8.9
    python examples/tensorrt_engine.py digits.onnx --out digits.engine --compare digits/val/7

TensorRT for RTX (``pip install tensorrt-rtx``) builds without a GPU for the given compute capability;
``--runtime tensorrt`` (``pip install tensorrt``) builds for the GPU of the machine. The precision is that of the file:
``van export --half`` gives float16. Class names and preprocessing stay in the ONNX file: keep both files together.

Builds were tested on a machine without a GPU; inference and comparison are untested, and no latency was measured.
TensorRT for RTX 1.7 cannot read Faster and Mask R-CNN, because it has no NonZero operator.
Shapes: the file's first input is ``images`` (N, 3, rows, columns) in float32.
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
from van.export.header import verify_checksum

RUNTIMES = {"tensorrt_rtx": "tensorrt_rtx_bindings", "tensorrt": "tensorrt"}
"""Module by package; ``tensorrt_rtx`` itself only re-exports its bindings."""


def build(
    onnx: Path, *, runtime: Any, compute_capability: str | None, max_batch_size: int, input_size: tuple[int, int]
) -> memoryview:
    """Build an engine and return it as TensorRT serializes it.

    Args:
        onnx: a file written by ``van export``.
        runtime: one of the modules in ``RUNTIMES``.
        compute_capability: of the target GPU, such as 8.9; that of the machine's GPU if None.
        max_batch_size: used if the batch size is dynamic.
        input_size: rows and columns, used if they are dynamic.

    Raises:
        CheckpointError: TensorRT cannot read the file or build an engine from it.
        UsageError: TensorRT cannot build for that GPU, or not without a GPU.
    """
    log = runtime.Logger(runtime.Logger.ERROR)
    try:
        builder = runtime.Builder(log)
    except TypeError as error:  # the binding raises this for a null pointer
        raise UsageError("TensorRT found no GPU; use --runtime tensorrt_rtx --compute-capability 8.9") from error
    network = builder.create_network(0)
    parser = runtime.OnnxParser(network, log)
    if not parser.parse(onnx.read_bytes()):
        raise CheckpointError(
            f"{onnx}: TensorRT cannot read it ({parser.get_error(0).desc()}); other runtimes may be able to"
        )
    config = builder.create_builder_config()
    if compute_capability is not None:
        _set_target(config, runtime, compute_capability)
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = tuple(tensor.shape)
        if -1 in shape:
            # minimum, optimum and maximum
            shapes = (_static_shape(shape, count, input_size) for count in (1, max_batch_size, max_batch_size))
            profile.set_shape(tensor.name, *shapes)
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise CheckpointError(f"{onnx}: TensorRT cannot build an engine from it; the log above has its errors")
    return memoryview(engine)


def max_relative_diff(engine: Path, onnx: Path, images: Sequence[str], *, runtime: Any) -> float:
    """Return the maximum difference between the first outputs of both files, relative to the largest value."""
    from van.export.formats import open_session
    from van.images import read_image

    session = open_session(onnx)
    (name, shape), *_ = session.header.inputs.items()
    cuda_engine = runtime.Runtime(runtime.Logger(runtime.Logger.ERROR)).deserialize_cuda_engine(engine.read_bytes())
    context = cuda_engine.create_execution_context()
    max_diff = 0.0
    for path in images:
        inputs = session.header.preprocess(read_image(path))[None].repeat(shape[0] or 1, 1, 1, 1)
        expected = session.run(inputs)
        context.set_input_shape(name, tuple(inputs.shape))
        outputs = [torch.empty_like(output, device="cuda") for output in expected]
        cuda_inputs = inputs.cuda().contiguous()
        for tensor_name, tensor in zip((name, *session.header.outputs), (cuda_inputs, *outputs), strict=True):
            context.set_tensor_address(tensor_name, tensor.data_ptr())
        context.execute_async_v3(torch.cuda.current_stream().cuda_stream)
        torch.cuda.synchronize()
        difference = (outputs[0].cpu() - expected[0]).abs().max() / expected[0].abs().max()
        max_diff = max(max_diff, difference.item())
    return max_diff


def main(arguments: Sequence[str] | None = None) -> int:
    """Build and write an engine, compare it with the ONNX file, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("onnx", type=Path, help="a file written by van export")
    parser.add_argument("--out", type=Path, required=True, help="the engine file to write")
    parser.add_argument("--runtime", choices=RUNTIMES, default="tensorrt_rtx")
    parser.add_argument("--compute-capability", help="of the target GPU, such as 8.9; tensorrt_rtx only")
    parser.add_argument("--max-batch-size", type=int, default=16, help="used if the batch size is dynamic")
    parser.add_argument(
        "--input-size", type=int, nargs=2, default=(512, 512), metavar=("ROWS", "COLUMNS"), help="used if dynamic"
    )
    parser.add_argument("--compare", nargs="+", default=[], metavar="IMAGE")
    options = parser.parse_args(arguments)
    try:
        runtime = importlib.import_module(RUNTIMES[options.runtime])
    except ImportError:
        package = options.runtime.replace("_", "-")
        print(f"--runtime: {options.runtime} is not installed: pip install {package}", file=sys.stderr)
        return 1
    try:
        if options.compare and not torch.cuda.is_available():
            raise UsageError("--compare requires a GPU, and PyTorch found none; leave it out to build the engine only")
        verify_checksum(options.onnx)
        engine = build(
            options.onnx,
            runtime=runtime,
            compute_capability=options.compute_capability,
            max_batch_size=options.max_batch_size,
            input_size=tuple(options.input_size),
        )
        with atomic_path(options.out) as temporary:
            temporary.write_bytes(engine)
        print(f"{options.out}: {len(engine) / 1e6:.1f} MB, by {options.runtime} {runtime.__version__}")
        if options.compare:
            max_diff = max_relative_diff(options.out, options.onnx, options.compare, runtime=runtime)
            print(f"maximum difference from {options.onnx}: {max_diff:.2g} of the largest output")
    except VanError as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


def _set_target(config: Any, runtime: Any, compute_capability: str) -> None:
    capabilities = getattr(runtime, "ComputeCapability", None)
    architecture = f"SM{compute_capability.replace('.', '')}"
    if capabilities is None or not hasattr(capabilities, architecture):
        known = (
            [name[2:-1] + "." + name[-1] for name in dir(capabilities) if name.startswith("SM")]
            if capabilities
            else ["none"]
        )
        name = runtime.__name__.partition("_bindings")[0]
        raise UsageError(
            f"--compute-capability: expected one of {', '.join(known)} for {name}, got {compute_capability}"
        )
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(capabilities, architecture), 0)


def _static_shape(shape: tuple[int, ...], batch_size: int, input_size: tuple[int, int]) -> tuple[int, ...]:
    """Return the shape with its dynamic dimensions replaced."""
    replacements = (batch_size, 3, *input_size)
    return tuple(replacements[axis] if side < 0 else side for axis, side in enumerate(shape))


if __name__ == "__main__":
    sys.exit(main())
