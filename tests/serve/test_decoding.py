"""What reading a picture holds, measured; and that it counts for exactly as long as it is held."""

import asyncio
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serve.conftest import png
from van.preprocess import Preprocess
from van.serve.budget import Budget
from van.serve.decoding import Decoder
from van.serve.headers import read_head
from van.serve.refusals import Refused
from van.serve.settings import Limits

WIDTH, HEIGHT = 1201, 1009
MEASURE = """
import io, json, os, re, sys
from pathlib import Path
from PIL import Image
from van.pictures import read_picture
from van.serve.decoding import _decoded
from van.serve.headers import read_head

def status(name):
    return int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10

for name in sys.argv[1:]:
    data = Path(name).read_bytes()
    counted = read_head(data, name).peak_bytes
    if not os.fork():  # a process of its own, whose peak begins with what it holds now
        small = io.BytesIO()
        with Image.open(name) as file:
            Image.new("RGB", (8, 8)).save(small, format=file.format)
        read_picture(small.getvalue()).tobytes()  # what is set up once for a format
        before = status("VmRSS")
        _decoded(data, name, None)
        print(json.dumps([name, status("VmHWM") - before, counted]), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""


def ramp(width: int, height: int) -> np.ndarray:
    slope = np.linspace(0, 160, height)[:, None] + np.linspace(0, 60, width)[None]
    noise = np.random.default_rng(0).integers(0, 30, (height, width, 3))
    return (slope[:, :, None] + noise).astype(np.uint8)


def transparent(picture: Image.Image) -> Image.Image:
    made = picture.convert("RGBA")
    made.putalpha(picture.convert("L"))
    return made


def write_all(folder: Path) -> list[Path]:
    """Of every format, and of every mode that is read in a way of its own."""
    colours = Image.fromarray(ramp(WIDTH, HEIGHT))
    deep = ramp(WIDTH, HEIGHT)[:, :, 0].astype(np.float32)
    turned = Image.Exif()
    turned[0x0112] = 6
    made = {
        "plain.jpg": (colours, {"progressive": True, "subsampling": 0, "exif": turned}),
        "print.jpg": (colours.convert("CMYK"), {}),
        "plain.png": (colours, {"compress_level": 1}),
        "alpha.png": (transparent(colours), {"compress_level": 1, "exif": turned}),
        "key.png": (colours, {"compress_level": 1, "transparency": (3, 3, 3)}),
        "deep.png": (Image.fromarray((deep * 200).astype(np.uint16)), {"compress_level": 1}),
        "plain.webp": (colours, {"lossless": True, "quality": 0, "method": 0}),
        "alpha.webp": (transparent(colours), {"lossless": True, "quality": 0, "method": 0}),
        "plain.bmp": (colours, {}),
        "palette.gif": (colours.convert("P"), {"transparency": 3}),
        "float.tif": (Image.fromarray(deep), {"compression": "tiff_lzw", "tiffinfo": {278: HEIGHT}}),
        "alpha.tif": (transparent(colours), {"compression": "tiff_deflate", "tiffinfo": {278: HEIGHT}}),
        "deep.pgm": (Image.fromarray((deep * 200).astype(np.uint16)), {}),
        "alpha.avif": (transparent(colours), {"speed": 10}),
    }
    for name, (picture, options) in made.items():
        picture.save(folder / name, **options)
    return [folder / name for name in made]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_no_picture_holds_more_than_is_counted_for_it_and_few_hold_much_less(tmp_path):
    files = write_all(tmp_path)
    done = subprocess.run([sys.executable, "-c", MEASURE, *files], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = {Path(name).name: (held, counted) for name, held, counted in map(json.loads, done.stdout.splitlines())}
    assert found.keys() == {path.name for path in files}
    for name, (held, counted) in found.items():
        assert held <= counted, (name, held / WIDTH / HEIGHT, counted / WIDTH / HEIGHT)
        assert held > 0.3 * counted, (name, held / WIDTH / HEIGHT)  # the measure sees what is held
    assert found["plain.jpg"][0] > 9 * WIDTH * HEIGHT  # which is more than its pixels


def decoder(*, memory_bytes: int = 1 << 20, threads: int = 1) -> tuple[Decoder, list[int]]:
    seen: list[int] = []
    limits = Limits(memory_bytes=memory_bytes)
    budget = Budget(memory_bytes, code="memory_full", what="the memory", on_change=seen.append)
    return Decoder(threads, limits=limits, memory=budget), seen


def test_what_waits_for_an_answer_counts_as_its_pixels_alone_and_then_as_nothing():
    async def run() -> None:
        reads, seen = decoder()
        rule = Preprocess(size_px=32)
        data = png(90, 70)
        async with reads.pixels(data, "a", None) as whole, reads.pixels(data, "b", rule) as crop:
            assert (whole.width, whole.height, len(whole.content)) == (90, 70, 18_900)
            assert (crop.width, crop.height, len(crop.content)) == (32, 32, 3_072)
            with Image.open(io.BytesIO(data)) as picture:
                assert crop.content == rule.crop(picture).tobytes()
            assert seen[-1] == 18_900 + 3_072
            assert max(seen) == 18_900 + read_head(data, "a").peak_bytes
        assert seen[-1] == 0
        reads.stop()

    asyncio.run(run())


def test_many_at_once_wait_for_a_thread_and_take_no_memory_until_they_have_one():
    async def run() -> None:
        data = png(90, 70)
        reads, seen = decoder(memory_bytes=read_head(data, "a").peak_bytes + 200_000)

        async def one() -> int:
            async with reads.pixels(data, "a", Preprocess(size_px=8)) as pixels:
                return len(pixels.content)

        assert await asyncio.gather(*(one() for _ in range(40))) == [192] * 40
        assert seen[-1] == 0
        reads.stop()

    asyncio.run(run())


def test_several_that_fit_only_one_after_the_other_wait_for_each_other():
    async def run() -> None:
        data = png(400, 300)
        peak = read_head(data, "a").peak_bytes
        reads, seen = decoder(memory_bytes=int(1.5 * peak), threads=4)

        async def one() -> int:
            async with reads.pixels(data, "a", Preprocess(size_px=8)) as pixels:
                return len(pixels.content)

        assert await asyncio.gather(*(one() for _ in range(8))) == [192] * 8
        assert peak <= max(seen) < 1.5 * peak
        assert seen[-1] == 0
        reads.stop()

    asyncio.run(run())


def test_a_picture_that_could_never_be_read_is_too_large_and_not_asked_to_come_again():
    async def run() -> None:
        data = png(90, 70)
        for room, status, code in ((len(data) + 1000, 413, "too_much_memory"), (160_000, 429, "memory_full")):
            reads, seen = decoder(memory_bytes=room)
            reads._memory.take(60_000 if status == 429 else 0)
            with pytest.raises(Refused) as refused:
                async with reads.pixels(data, "a.png", None):
                    pass
            assert (refused.value.status, refused.value.code) == (status, code)
            assert seen[-1] == (60_000 if status == 429 else 0)
            reads.stop()

    asyncio.run(run())


def test_who_leaves_while_a_picture_is_decoded_gives_back_its_memory_when_the_thread_is_done():
    async def run() -> None:
        data = png(900, 700)
        reads, seen = decoder(memory_bytes=1 << 26)

        async def one() -> None:
            async with reads.pixels(data, "a", None):
                await asyncio.Event().wait()

        for pause_s in (0.0, 0.005, 0.5):
            task = asyncio.create_task(one())
            await asyncio.sleep(pause_s)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        async with asyncio.timeout(5):
            while seen[-1] or not reads._free._value:
                await asyncio.sleep(0.01)
        reads.stop()

    asyncio.run(run())
