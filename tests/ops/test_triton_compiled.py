"""The Triton kernels built for real GPUs by Triton's own compiler, which needs none: what its interpreter cannot see.

Launches are caught on their way to the kernel, from tensors without memory at batch 256, and compiled with the
arguments, alignments and tilings that they would have had. ``pytest -m slow -s`` prints what the compiler answers
for every kernel of VAN's four stages.
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


class Built(NamedTuple):
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
    """A function that runs an operator and returns the kernels that it would have started, and their arguments."""
    kernels = importlib.import_module("van.ops.triton_kernels")

    def caught(operator: Callable, *inputs: Any) -> list[tuple[Any, dict]]:
        found = []

        def recorder(name: str) -> Any:
            class Recorder:
                def __getitem__(self, grid: tuple[int]) -> Callable:
                    assert grid[0] > 0
                    return lambda **arguments: found.append((getattr(kernels, name), arguments))

            return Recorder()

        fake = SimpleNamespace(**{name: recorder(name) for name in KERNELS})
        monkeypatch.setattr(operators, "_kernels", lambda: fake)
        operator(*inputs)
        return found

    return caught


def compiled(kernel: Any, arguments: dict, capability: int) -> Built:
    """What Triton makes of one launch for GPUs of a compute capability."""
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
    return Built(kernel.__name__, built.asm["ptx"], *resources(built.asm["cubin"]))


def resources(cubin: bytes) -> Iterator[int]:
    """Registers and bytes of stack of a thread, bytes of shared memory; instructions of the inner loop, FFMA in it."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", "-sass", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    numbers = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)", text).groups()
    return (int(number) for number in (*numbers, *inner_loop(text)))


def inner_loop(sass: str) -> tuple[int, int]:
    """Instructions, and multiply-adds among them, of the longest loop without a loop in it."""
    lines = [(int(place, 16), what) for place, what in re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.+?);", sass, re.M)]
    jumps = [(int(to, 16), place) for place, what in lines for to in re.findall(r"BRA.* 0x([0-9a-f]+)", what)]
    loops = [(start, end) for start, end in jumps if start < end]
    inner = [a for a in loops if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    bodies = [[what for place, what in lines if start <= place <= end] for start, end in inner]
    body = max(bodies, key=len)
    return len(body), sum("FFMA" in what for what in body)


def maps(channels: int, side: int, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Tensor]:
    """A map and a gradient at batch 256, without memory."""
    x = torch.empty(256, channels, side, side, dtype=dtype, device="meta", memory_format=torch.channels_last)
    return x, x


def kernel_of(x: Tensor, side: int) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[1], 1, side, side), x.new_empty(x.shape[1])


def of_pair(launches: Callable, channels: int, side: int, dtype: torch.dtype = torch.bfloat16) -> list:
    x, gradient = maps(channels, side, dtype)
    local, dilated = kernel_of(x, 5), kernel_of(x, 7)
    return [
        *launches(operators.lka_pair, x, *local, *dilated, 3),
        *launches(operators.lka_pair_backward, gradient, x, *local, dilated[0], 3),
    ]


def of_feed_forward(launches: Callable, channels: int, side: int, dtype: torch.dtype = torch.bfloat16) -> list:
    x, gradient = maps(channels, side, dtype)
    weight, bias = kernel_of(x, 3)
    return [
        *launches(operators.depthwise_gelu, x, weight, bias),
        *launches(operators.depthwise_gelu_backward, gradient, x, weight, bias),
    ]


def report(arguments: dict, built: Built, capability: int) -> None:
    shape = tuple(arguments["x"].shape[1:])
    kernel = tuple(arguments[name] for name in ("kernel_rows", "kernel_columns"))
    tile = tuple(arguments.get(name) for name in ("tile_columns", "step", "channel_block", "image_block"))
    print(f"sm_{capability} {built.name:16} {shape!s:15} {kernel} tile {tile!s:18} {built[2:]}")


def every_launch(launches: Callable) -> list:
    found = [launch for shape in PAIRS for launch in of_pair(launches, *shape)]
    return found + [launch for shape in FEED_FORWARD for launch in of_feed_forward(launches, *shape)]


@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernels_compile_for_ampere_and_hopper_within_their_registers(launches, capability):
    """The cheapest of every kind; ``-m slow`` compiles them all."""
    x, gradient = maps(512, 7)
    found = [*of_feed_forward(launches, 2048, 7), *launches(operators.depthwise, x, *kernel_of(x, 7), 3)]
    found.append(launches(operators.depthwise_backward, gradient, x, kernel_of(x, 7)[0], 3)[0])
    assert {kernel.__name__ for kernel, _ in found} == set(KERNELS)
    for kernel, arguments in found:
        built = compiled(kernel, arguments, capability)
        assert 0 < built.registers <= 255
        assert (built.stack_bytes, built.shared_bytes) == (0, 0)


@pytest.mark.parametrize(("dtype", "wide"), [(torch.bfloat16, "b32"), (torch.float32, "v2.b32")])
def test_two_channels_travel_together_if_there_is_an_even_number_of_them(launches, dtype, wide):
    for channels, expected in ((512, True), (37, False)):
        x = maps(channels, 7, dtype)[0]
        built = compiled(*launches(operators.depthwise, x, *kernel_of(x, 7), 3)[0], 90)
        stores = set(re.findall(r"st\.global\.(\S+)", built.ptx))
        assert (stores == {wide}) is expected, stores


def test_a_map_of_more_than_two_to_the_31_values_compiles(launches):
    x = torch.empty(4096, 512, 7, 7, dtype=torch.float16, device="meta").expand(4096, 512, 7, 7)
    x = x.as_strided(x.shape, (2**31, 1, 2**30 + 2, 512))
    kernel, arguments = launches(operators.depthwise, x, *kernel_of(x, 7), 3)[0]
    assert arguments["x_image"] == 2**31
    assert compiled(kernel, arguments, 90).stack_bytes == 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("capability", [80, 90])
def test_no_shipped_tiling_spills_a_register(launches, capability):
    spilled = []
    for kernel, arguments in every_launch(launches):
        built = compiled(kernel, arguments, capability)
        report(arguments, built, capability)
        if built.stack_bytes or built.shared_bytes:
            spilled.append((built.name, arguments["x"].shape, built.registers, built.stack_bytes))
    assert not spilled


@pytest.mark.slow
def test_most_of_what_the_pair_issues_are_multiply_adds(launches):
    """At 56 x 56 it is bound by instructions, so this share is its speed."""
    for kernel, arguments in of_pair(launches, *PAIRS[0]):
        built = compiled(kernel, arguments, 90)
        assert built.multiply_adds > (0.73 if built.name == "convolve" else 0.55) * built.loop


def test_the_table_holds_the_shapes_of_the_four_stages_and_no_others(launches):
    used = set()
    for kernel, arguments in every_launch(launches):
        names = ("kernel_rows", "rows", "tile_columns")
        side, rows, tile_columns = (arguments[name] for name in names)
        name = (kernel.__name__, side, arguments.get("dilation", 1), rows)
        assert triton_tiling.SHIPPED[name].tile_columns == tile_columns
        used.add(name)
    assert used == set(triton_tiling.SHIPPED)


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


@pytest.mark.parametrize("operator", KERNELS)
def test_the_tuner_is_offered_the_tiling_in_use_and_others_that_the_kernel_knows(operator):
    asked = problem(operator, dilation=1 if operator == "gelu_gradient" else 3, kernel_rows=3, kernel_columns=3)
    offered = triton_tiling.neighbours(asked)
    assert offered[0] == triton_tiling.tiling_for(asked)
    assert len(offered) == len(set(offered)) > 1
    tuned = operators._tuned(asked)
    names = set(tuned.arg_names)
    assert all(set(config.kwargs) <= names for config in tuned.configs)
    assert len({str(config.kwargs) for config in tuned.configs}) == len(offered)


@pytest.mark.parametrize("rows", [1, 2, 13, 56, 97])
def test_every_row_and_column_belongs_to_a_tile(rows):
    for operator in KERNELS[:2]:
        asked = problem(operator, rows=rows, columns=2 * rows)
        for tiling in triton_tiling.neighbours(asked):
            chosen = triton_tiling.settings(asked, tiling)
            groups = -(-asked.phase_columns // chosen["tile_columns"])
            tiles = groups * 9 * -(-asked.images // chosen["image_block"]) * chosen.get("strips", 1)
            assert chosen["units"] == tiles
            assert chosen["channel_block"] * chosen["image_block"] == tiling.lanes
            assert chosen["halo"] == 3 or groups == 1
            assert chosen["before"] == 3 or tiling.step >= asked.phase_rows
