"""Memory of decoding: measured for every format, and reserved exactly as long as it is held."""

import asyncio
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serving.conftest import png
from van.preprocess import CenterCropPreprocess
from van.serving.api_error import ApiError
from van.serving.decoding import Decoder
from van.serving.image_probe import read_image_header
from van.serving.quota import Quota
from van.serving.settings import Limits

WIDTH, HEIGHT = 1201, 1009
MEASURE = """
import io, json, os, re, sys
from pathlib import Path
from PIL import Image
from van.images import read_image
from van.serving.decoding import _decode
from van.serving.image_probe import read_image_header

def status(name):
    return int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10

for name in sys.argv[1:]:
    data = Path(name).read_bytes()
    estimated = read_image_header(data, name).peak_bytes
    if not os.fork():  # its own process, as the peak counts from its start
        small = io.BytesIO()
        with Image.open(name) as file:
            Image.new("RGB", (8, 8)).save(small, format=file.format)
        read_image(small.getvalue()).tobytes()  # what a format sets up once does not count
        before = status("VmRSS")
        _decode(data, name, None)
        print(json.dumps([name, status("VmHWM") - before, estimated]), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""


def ramp(width: int, height: int) -> np.ndarray:
    slope = np.linspace(0, 160, height)[:, None] + np.linspace(0, 60, width)[None]
    noise = np.random.default_rng(0).integers(0, 30, (height, width, 3))
    return (slope[:, :, None] + noise).astype(np.uint8)


def add_alpha(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    rgba.putalpha(image.convert("L"))
    return rgba


def write_all(folder: Path) -> list[Path]:
    """Write an image in every format, and in every mode that is decoded differently."""
    colors = Image.fromarray(ramp(WIDTH, HEIGHT))
    deep = ramp(WIDTH, HEIGHT)[:, :, 0].astype(np.float32)
    exif = Image.Exif()
    exif[0x0112] = 6
    images = {
        "plain.jpg": (colors, {"progressive": True, "subsampling": 0, "exif": exif}),
        "print.jpg": (colors.convert("CMYK"), {}),
        "plain.png": (colors, {"compress_level": 1}),
        "alpha.png": (add_alpha(colors), {"compress_level": 1, "exif": exif}),
        "key.png": (colors, {"compress_level": 1, "transparency": (3, 3, 3)}),
        "deep.png": (Image.fromarray((deep * 200).astype(np.uint16)), {"compress_level": 1}),
        "plain.webp": (colors, {"lossless": True, "quality": 0, "method": 0}),
        "alpha.webp": (add_alpha(colors), {"lossless": True, "quality": 0, "method": 0}),
        "plain.bmp": (colors, {}),
        "palette.gif": (colors.convert("P"), {"transparency": 3}),
        "float.tif": (Image.fromarray(deep), {"compression": "tiff_lzw", "tiffinfo": {278: HEIGHT}}),
        "alpha.tif": (add_alpha(colors), {"compression": "tiff_deflate", "tiffinfo": {278: HEIGHT}}),
        "deep.pgm": (Image.fromarray((deep * 200).astype(np.uint16)), {}),
        "alpha.avif": (add_alpha(colors), {"speed": 10}),
    }
    for name, (image, options) in images.items():
        image.save(folder / name, **options)
    return [folder / name for name in images]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_no_image_takes_more_memory_than_estimated_and_few_take_much_less(tmp_path):
    files = write_all(tmp_path)
    done = subprocess.run([sys.executable, "-c", MEASURE, *files], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    measured = {
        Path(name).name: (held, estimated) for name, held, estimated in map(json.loads, done.stdout.splitlines())
    }
    assert measured.keys() == {path.name for path in files}
    for name, (held, estimated) in measured.items():
        assert held <= estimated, (name, held / WIDTH / HEIGHT, estimated / WIDTH / HEIGHT)
        assert held > 0.3 * estimated, (name, held / WIDTH / HEIGHT)  # the measurement works
    assert measured["plain.jpg"][0] > 9 * WIDTH * HEIGHT  # more than its pixels


def make_decoder(*, memory_bytes: int = 1 << 20, threads: int = 1) -> tuple[Decoder, list[int]]:
    reserved: list[int] = []
    limits = Limits(max_memory_bytes=memory_bytes)
    quota = Quota(memory_bytes, code="memory_full", resource="memory", on_change=reserved.append)
    return Decoder(threads, limits=limits, memory=quota), reserved


def test_a_decoded_image_reserves_its_pixels_and_then_nothing():
    async def run() -> None:
        decoder, reserved = make_decoder()
        rule = CenterCropPreprocess(image_size=32)
        data = png(90, 70)
        async with decoder.decode(data, "a", None) as whole, decoder.decode(data, "b", rule) as crop:
            assert (whole.width, whole.height, len(whole.content)) == (90, 70, 18_900)
            assert (crop.width, crop.height, len(crop.content)) == (32, 32, 3_072)
            with Image.open(io.BytesIO(data)) as image:
                assert crop.content == rule.crop(image).tobytes()
            assert reserved[-1] == 18_900 + 3_072
            assert max(reserved) == 18_900 + read_image_header(data, "a").peak_bytes
        assert reserved[-1] == 0
        decoder.stop()

    asyncio.run(run())


def test_many_images_wait_for_a_thread_and_reserve_no_memory_before():
    async def run() -> None:
        data = png(90, 70)
        decoder, reserved = make_decoder(memory_bytes=read_image_header(data, "a").peak_bytes + 200_000)

        async def one() -> int:
            async with decoder.decode(data, "a", CenterCropPreprocess(image_size=8)) as pixels:
                return len(pixels.content)

        assert await asyncio.gather(*(one() for _ in range(40))) == [192] * 40
        assert reserved[-1] == 0
        decoder.stop()

    asyncio.run(run())


def test_images_that_fit_only_one_at_a_time_wait_for_each_other():
    async def run() -> None:
        data = png(400, 300)
        peak = read_image_header(data, "a").peak_bytes
        decoder, reserved = make_decoder(memory_bytes=int(1.5 * peak), threads=4)

        async def one() -> int:
            async with decoder.decode(data, "a", CenterCropPreprocess(image_size=8)) as pixels:
                return len(pixels.content)

        assert await asyncio.gather(*(one() for _ in range(8))) == [192] * 8
        assert peak <= max(reserved) < 1.5 * peak
        assert reserved[-1] == 0
        decoder.stop()

    asyncio.run(run())


def test_an_image_that_never_fits_is_too_large_and_one_that_fits_later_may_retry():
    async def run() -> None:
        data = png(90, 70)
        for available, status, code in ((len(data) + 1000, 413, "image_too_large"), (160_000, 429, "memory_full")):
            decoder, reserved = make_decoder(memory_bytes=available)
            decoder._memory.acquire(60_000 if status == 429 else 0)
            with pytest.raises(ApiError) as error:
                async with decoder.decode(data, "a.png", None):
                    pass
            assert (error.value.status, error.value.code) == (status, code)
            assert reserved[-1] == (60_000 if status == 429 else 0)
            decoder.stop()

    asyncio.run(run())


def test_a_cancelled_decoding_releases_its_memory_when_its_thread_has_finished():
    async def run() -> None:
        data = png(900, 700)
        decoder, reserved = make_decoder(memory_bytes=1 << 26)

        async def one() -> None:
            async with decoder.decode(data, "a", None):
                await asyncio.Event().wait()

        for pause_s in (0.0, 0.005, 0.5):
            task = asyncio.create_task(one())
            await asyncio.sleep(pause_s)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        async with asyncio.timeout(5):
            while reserved[-1] or not decoder._free_threads._value:
                await asyncio.sleep(0.01)
        decoder.stop()

    asyncio.run(run())
