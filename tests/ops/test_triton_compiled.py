"""The Triton kernels compiled for GPUs by Triton's compiler, which requires no GPU.

Launches on meta tensors at batch 256 are intercepted and compiled with their arguments, alignments and tilings.
``pytest -m slow -s`` prints the compiler's resource usage for every kernel of VAN's four stages.
"""

import importlib
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from van.ops import triton as operators
from van.ops import triton_tiling
from van.ops.triton_tiling import Problem

triton = pytest.importorskip("triton")
KERNELS = ("convolve", "weight_gradient", "gelu_gradient")
PAIRS = [(64, 56), (128, 28), (320, 14), (512, 7)]  # channels and side of the map, by stage
FEED_FORWARD = [(512, 56), (1024, 28), (1280, 14), (2048, 7)]
TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}


class CompiledKernel(NamedTuple):
    """A compiled kernel: its PTX; registers and bytes of stack of a thread, bytes of shared memory; its inner loop."""

    name: str
    ptx: str
    registers: int
    stack_bytes: int
    shared_bytes: int
    loop: int
    multiply_adds: int


@pytest.fixture(autouse=True)
def fresh_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[Any, dict]]]:
    """Return a function that runs an operator and returns the kernels that it would launch, with their arguments."""
    kernels = importlib.import_module("van.ops.triton_kernels")

    def record_launches(operator: Callable, *inputs: Any) -> list[tuple[Any, dict]]:
        found = []

        def recorder(name: str) -> Any:
            class Recorder:
                def __getitem__(self, grid: tuple[int]) -> Callable:
                    assert grid[0] > 0
                    return lambda **arguments: found.append((getattr(kernels, name), arguments))

            return Recorder()

        fake = SimpleNamespace(**{name: recorder(name) for name in KERNELS})
        monkeypatch.setattr(operators, "_load_kernels", lambda: fake)
        operator(*inputs)
        return found

    return record_launches


def compile_launch(kernel: Any, arguments: dict, capability: int) -> CompiledKernel:
    """Compile one launch for GPUs of a compute capability."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, constants, attributes = {}, {}, {}
    for place, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        if parameter.is_constexpr or value is None:
            signature[parameter.name], constants[parameter.name] = "constexpr", value
            continue
        signature[parameter.name] = (
            TYPES[value.dtype] if isinstance(value, Tensor) else "i32" if value < 2**31 else "i64"
        )
        aligned = isinstance(value, Tensor) or value % 16 == 0  # PyTorch's allocators align to more than 16 bytes
        if aligned and not parameter.do_not_specialize:
            attributes[place,] = [["tt.divisibility", 16]]
    options = {name: arguments[name] for name in ("num_warps", "enable_fp_fusion")}
    source = ASTSource(kernel, signature, constants, attributes)
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    return CompiledKernel(kernel.__name__, built.asm["ptx"], *resources(built.asm["cubin"]))


def resources(cubin: bytes) -> Iterator[int]:
    """Return registers, stack and shared memory bytes, and instructions and FFMAs of the inner loop."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", "-sass", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    numbers = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)", text).groups()
    return (int(number) for number in (*numbers, *inner_loop(text)))


def inner_loop(sass: str) -> tuple[int, int]:
    """Return the instructions, and the multiply-adds among them, of the longest innermost loop."""
    lines = [(int(place, 16), what) for place, what in re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.+?);", sass, re.M)]
    jumps = [(int(to, 16), place) for place, what in lines for to in re.findall(r"BRA.* 0x([0-9a-f]+)", what)]
    loops = [(start, end) for start, end in jumps if start < end]
    inner = [a for a in loops if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    bodies = [[what for place, what in lines if start <= place <= end] for start, end in inner]
    body = max(bodies, key=len)
    return len(body), sum("FFMA" in what for what in body)


def maps(channels: int, side: int, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Tensor]:
    """Return an input and a gradient at batch 256, on the meta device."""
    x = torch.empty(256, channels, side, side, dtype=dtype, device="meta", memory_format=torch.channels_last)
    return x, x


def kernel_of(x: Tensor, side: int) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[1], 1, side, side), x.new_empty(x.shape[1])


def run_pair(launches: Callable, channels: int, side: int, dtype: torch.dtype = torch.bfloat16) -> list:
    x, gradient = maps(channels, side, dtype)
    local, dilated = kernel_of(x, 5), kernel_of(x, 7)
    return [
        *launches(operators.lka_pair, x, *local, *dilated, 3),
        *launches(operators.lka_pair_backward, gradient, x, *local, dilated[0], 3),
    ]


def launch_feed_forward(launches: Callable, channels: int, side: int, dtype: torch.dtype = torch.bfloat16) -> list:
    x, gradient = maps(channels, side, dtype)
    weight, bias = kernel_of(x, 3)
    return [
        *launches(operators.depthwise_gelu, x, weight, bias),
        *launches(operators.depthwise_gelu_backward, gradient, x, weight, bias),
    ]


def report(arguments: dict, built: CompiledKernel, capability: int) -> None:
    shape = tuple(arguments["x"].shape[1:])
    kernel = tuple(arguments[name] for name in ("kernel_rows", "kernel_columns"))
    tile = tuple(arguments.get(name) for name in ("tile_columns", "step", "channel_block", "image_block"))
    print(f"sm_{capability} {built.name:16} {shape!s:15} {kernel} tile {tile!s:18} {built[2:]}")


def all_launches(launches: Callable) -> list:
    found = [launch for shape in PAIRS for launch in run_pair(launches, *shape)]
    return found + [launch for shape in FEED_FORWARD for launch in launch_feed_forward(launches, *shape)]


@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_for_ampere_and_hopper_without_spills(launches, capability):
    """The cheapest kernel of each kind; ``-m slow`` compiles all."""
    x, gradient = maps(512, 7)
    found = [*launch_feed_forward(launches, 2048, 7), *launches(operators.depthwise, x, *kernel_of(x, 7), 3)]
    found.append(launches(operators.depthwise_backward, gradient, x, kernel_of(x, 7)[0], 3)[0])
    assert {kernel.__name__ for kernel, _ in found} == set(KERNELS)
    for kernel, arguments in found:
        built = compile_launch(kernel, arguments, capability)
        assert 0 < built.registers <= 255
        assert (built.stack_bytes, built.shared_bytes) == (0, 0)


@pytest.mark.parametrize(("dtype", "wide"), [(torch.bfloat16, "b32"), (torch.float32, "v2.b32")])
def test_stores_are_vectorized_for_even_channel_counts(launches, dtype, wide):
    for channels, expected in ((512, True), (37, False)):
        x = maps(channels, 7, dtype)[0]
        built = compile_launch(*launches(operators.depthwise, x, *kernel_of(x, 7), 3)[0], 90)
        stores = set(re.findall(r"st\.global\.(\S+)", built.ptx))
        assert (stores == {wide}) is expected, stores


def test_tensors_with_more_than_two_to_the_31_elements_compile(launches):
    x = torch.empty(4096, 512, 7, 7, dtype=torch.float16, device="meta").expand(4096, 512, 7, 7)
    x = x.as_strided(x.shape, (2**31, 1, 2**30 + 2, 512))
    kernel, arguments = launches(operators.depthwise, x, *kernel_of(x, 7), 3)[0]
    assert arguments["x_image"] == 2**31
    assert compile_launch(kernel, arguments, 90).stack_bytes == 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("capability", [80, 90])
def test_default_tilings_do_not_spill_registers(launches, capability):
    spilled = []
    for kernel, arguments in all_launches(launches):
        built = compile_launch(kernel, arguments, capability)
        report(arguments, built, capability)
        if built.stack_bytes or built.shared_bytes:
            spilled.append((built.name, arguments["x"].shape, built.registers, built.stack_bytes))
    assert not spilled


@pytest.mark.slow
def test_most_instructions_of_the_pair_are_multiply_adds(launches):
    """At 56 x 56 the pair is compute-bound, so this fraction determines its throughput."""
    for kernel, arguments in run_pair(launches, *PAIRS[0]):
        built = compile_launch(kernel, arguments, 90)
        assert built.multiply_adds > (0.73 if built.name == "convolve" else 0.55) * built.loop


def test_default_tilings_cover_exactly_the_shapes_of_the_four_stages(launches):
    used = set()
    for kernel, arguments in all_launches(launches):
        names = ("kernel_rows", "rows", "tile_columns")
        side, rows, tile_columns = (arguments[name] for name in names)
        name = (kernel.__name__, side, arguments.get("dilation", 1), rows)
        assert triton_tiling.DEFAULT_TILINGS[name].tile_columns == tile_columns
        used.add(name)
    assert used == set(triton_tiling.DEFAULT_TILINGS)


def problem(operator: str, **other: int) -> Problem:
    given = {
        "images": 2,
        "channels": 40,
        "rows": 56,
        "columns": 56,
        "kernel_rows": 7,
        "kernel_columns": 7,
        "dilation": 3,
    }
    return Problem(operator=operator, **{**given, **other})


def test_autotuner_candidates_include_the_selected_tiling(subtests):
    for operator in KERNELS:
        with subtests.test(operator=str(operator)):
            example = problem(
                operator, dilation=1 if operator == "gelu_gradient" else 3, kernel_rows=3, kernel_columns=3
            )
            candidates = triton_tiling.candidate_tilings(example)
            assert candidates[0] == triton_tiling.select_tiling(example)
            assert len(candidates) == len(set(candidates)) > 1
            tuned = operators._autotuned_kernel(example)
            names = set(tuned.arg_names)
            assert all(set(config.kwargs) <= names for config in tuned.configs)
            assert len({str(config.kwargs) for config in tuned.configs}) == len(candidates)


def test_tiles_cover_every_row_and_column(subtests):
    for rows in [1, 2, 13, 56, 97]:
        with subtests.test(rows=str(rows)):
            for operator in KERNELS[:2]:
                example = problem(operator, rows=rows, columns=2 * rows)
                for tiling in triton_tiling.candidate_tilings(example):
                    arguments = triton_tiling.kernel_arguments(example, tiling)
                    groups = -(-example.phase_columns // arguments["tile_columns"])
                    tiles = groups * 9 * -(-example.images // arguments["image_block"]) * arguments.get("strips", 1)
                    assert arguments["num_tiles"] == tiles
                    assert arguments["channel_block"] * arguments["image_block"] == tiling.lanes
                    assert arguments["halo"] == 3 or groups == 1
                    assert arguments["rows_above"] == 3 or tiling.step >= example.phase_rows
