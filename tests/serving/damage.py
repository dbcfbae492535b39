"""Image files of every supported format, and ways to damage them; a case is determined by a seed and a number.

Most damage keeps the container of a file valid (lengths, checksums, boxes), so that it reaches the decoder.
"""

import functools
import io
import random
import re
import struct
import zlib
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

EXTREMES = (0, 1, 2, 7, 8, 127, 128, 255, 256, 4095, 32767, 32768, 65535, 65536, 1 << 24, 2**31 - 1, 2**31, 2**32 - 1)
PNG, TEXT, RIFF = b"\x89PNG\r\n\x1a\n", 4 << 20, 12

Damage = Callable[[bytes, random.Random], bytes]


def image(width: int, height: int, seed: int = 0) -> Image.Image:
    """Return colored noise that is brighter on the right."""
    noise = np.random.default_rng(seed).integers(0, 100, (height, width, 3))
    return Image.fromarray((noise + np.linspace(0, 150, width)[None, :, None]).astype(np.uint8))


def written(source: Image.Image, format_name: str, **options: object) -> bytes:
    """Return the image as a file of that format."""
    file = io.BytesIO()
    source.save(file, format_name, **options)
    return file.getvalue()


@functools.cache
def seeds() -> dict[str, bytes]:
    """Return valid files by their description."""
    rgb, gray = image(61, 47), image(61, 47).convert("L")
    rgba, cmyk = rgb.copy(), rgb.convert("CMYK")
    rgba.putalpha(gray)
    deep = Image.fromarray(np.asarray(gray).astype(np.uint16) * 257)
    wide, real = Image.fromarray(np.asarray(gray).astype(np.int32)), Image.fromarray(np.asarray(gray) / np.float32(255))
    animation = {"save_all": True, "append_images": [image(61, 47, seed).quantize(16) for seed in (1, 2)]}
    several = {"save_all": True, "append_images": [image(61, 47, 1), image(30, 20, 2)]}
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a description"
    files = {
        "jpeg": written(rgb, "JPEG"),
        "jpeg progressive": written(rgb, "JPEG", progressive=True, quality=50),
        "jpeg cmyk": written(cmyk, "JPEG"),
        "jpeg gray, rotated": written(gray, "JPEG", exif=exif, comment=b"a comment", icc_profile=b"p" * 300),
        "mpo": written(rgb, "MPO", save_all=True, append_images=[rgb]),
        "png": written(rgb, "PNG", exif=exif, icc_profile=b"p" * 300),
        "png 1 bit": written(gray.convert("1"), "PNG"),
        "png 16 bits": written(deep, "PNG"),
        "png palette": written(rgb.quantize(11), "PNG", transparency=b"\x00\x80", bits=4),
        "png alpha": written(rgba, "PNG"),
        "png interlaced": _interlaced(),
        "png animated": written(rgb, "PNG", **several, default_image=True),
        "gif": written(rgb.quantize(32), "GIF", comment=b"a comment"),
        "gif animated": written(rgb.quantize(16), "GIF", **animation, duration=20, loop=3, transparency=1, disposal=2),
        "webp": written(rgb, "WEBP", exif=exif),
        "webp lossless": written(rgba, "WEBP", lossless=True),
        "webp animated": written(rgba, "WEBP", save_all=True, append_images=[rgba.rotate(9)]),
        "bmp": written(rgb, "BMP"),
        "bmp palette": written(rgb.quantize(11), "BMP"),
        "bmp 1 bit": written(gray.convert("1"), "BMP"),
        "bmp alpha": written(rgba, "BMP"),
        "bmp run lengths": runs(61, 47, b"\x3d\x02\0\0" * 44 + b"\0\2\0\2" + b"\0\4\1\2\3\4" + b"\x39\x01"),
        "ppm": written(rgb, "PPM"),
        "pgm odd": b"P5 # odd\n9 7\n100\n" + bytes(range(63)),
        "pgm deep": b"P5 9 7 4095\n" + bytes(2 * 63),
        "ppm ascii": b"P3 3 2 255\n# text\n" + b"1 2 3 40 50 60\n" * 3,
        "pbm ascii": b"P1\n5 3\n10101 01010\n10101\n",
        "pfm": written(real, "PPM"),
        "avif": written(rgb, "AVIF", exif=exif),
        "avif alpha": written(rgba, "AVIF", quality=50),
        "avif animated": written(rgb, "AVIF", save_all=True, append_images=[rgb.rotate(9)]),
        "tiff pages": written(rgb, "TIFF", **several),
        "tiff 16 bits": written(deep, "TIFF", compression="tiff_lzw"),
        "tiff 32 bits": written(wide, "TIFF"),
        "tiff floats": written(real, "TIFF", compression="tiff_adobe_deflate"),
        "tiff cmyk": written(cmyk, "TIFF", exif=exif),
        "tiff tiled": tiled(61, 47, 32, 16),
        "big tiff": written(rgba, "TIFF", big_tiff=True),
    }
    for compression in ("raw", "packbits", "lzw", "tiff_jpeg", "jpeg", "tiff_adobe_deflate", "zstd", "lzma"):
        files[f"tiff {compression}"] = written(
            rgb, "TIFF", compression=None if compression == "raw" else compression.replace("lzw", "tiff_lzw")
        )
    for compression in ("tiff_ccitt", "group3", "group4"):
        files[f"tiff {compression}"] = written(gray.convert("1"), "TIFF", compression=compression)
    return files


def case(seed: int, number: int) -> tuple[str, bytes]:
    """Return a description of the damage, and the damaged file."""
    chance = random.Random(f"{seed} {number}")
    names = sorted(seeds())
    name = chance.choice(names)
    if chance.random() < 0.04:
        bomb = chance.choice(BOMBS)
        return f"bomb: {bomb.__name__}", bomb(chance)
    data, applied = seeds()[name], []
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        damage = chance.choice(DAMAGES)
        data = damage(data, chance)[: 1 << 21]
        applied.append(damage.__name__)
    return f"{name}: {', '.join(applied)}", data


def chunk(kind: bytes, content: bytes) -> bytes:
    """Return a PNG chunk with its length and checksum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def runs(width: int, height: int, content: bytes, method: int = 1) -> bytes:
    """Return a BMP whose pixels are run-length encoded."""
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8 // method, method, len(content), 0, 0, 16, 0)
    palette = bytes(range(64))
    start = 14 + len(head) + len(palette)
    return b"BM" + struct.pack("<IHHI", start + len(content), 0, 0, start) + head + palette + content


def tiled(width: int, height: int, tile_width: int, tile_height: int, *, method: int = 8) -> bytes:
    """Return a gray TIFF in compressed tiles, all with the same content."""
    tile = zlib.compress(bytes(tile_width * tile_height), 9)
    tiles = -(-width // tile_width) * -(-height // tile_height)
    table = struct.pack(f"<{tiles}I", *[8] * tiles) + struct.pack(f"<{tiles}I", *[len(tile)] * tiles)
    places = (8 + len(tile), 8 + len(tile) + 4 * tiles) if tiles > 1 else (8, len(tile))
    sizes = [(256, width), (257, height), (258, 8), (259, method), (262, 1), (277, 1)]
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in (*sizes, (322, tile_width), (323, tile_height))]
    entries += [struct.pack("<HHII", tag, 4, tiles, place) for tag, place in zip((324, 325), places, strict=True)]
    start = struct.pack("<I", 8 + len(tile) + len(table))
    return b"II*\0" + start + tile + table + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)


def many_scans(count: int, side_px: int) -> bytes:
    """Return a progressive JPEG whose last scan is repeated."""
    file = written(Image.new("L", (side_px, side_px)), "JPEG", progressive=True)
    last, end = file.rindex(b"\xff\xda"), file.rindex(b"\xff\xd9")
    return file[:last] + file[last:end] * count + file[end:]


def _interlaced() -> bytes:
    """Return an interlaced 5 x 5 PNG, which Pillow cannot write: seven passes, each row with its filter type."""
    rows = [(1, 1), (1, 1), (2, 1), (1, 2), (3, 1), (2, 3), (5, 2)]
    lines = b"".join(b"\0" + bytes(range(width)) for width, count in rows for _ in range(count))
    head = struct.pack(">IIBBBBB", 5, 5, 8, 0, 0, 0, 1)
    return PNG + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def flip_bits(data: bytes, chance: random.Random) -> bytes:
    made = bytearray(data)
    for _ in range(min(len(made), chance.choice((1, 1, 3, 20)))):
        made[_place(data, chance) % len(made)] ^= 1 << chance.randrange(8)
    return bytes(made)


def overwrite(data: bytes, chance: random.Random) -> bytes:
    place, length = _place(data, chance), chance.choice((1, 2, 4, 16, 200))
    value = chance.choice((b"\0", b"\xff", b"\x80", bytes([chance.randrange(256)])))
    return (
        data[:place] + (chance.randbytes(length) if chance.random() < 0.3 else value * length) + data[place + length :]
    )


def truncate(data: bytes, chance: random.Random) -> bytes:
    return data[: _place(data, chance)]


def delete_bytes(data: bytes, chance: random.Random) -> bytes:
    place = _place(data, chance)
    return data[:place] + data[place + chance.randrange(1, 60) :]


def duplicate_bytes(data: bytes, chance: random.Random) -> bytes:
    first, second = sorted((_place(data, chance), _place(data, chance)))
    return data[:second] + data[first:second] * chance.choice((1, 2, 50)) + data[second:]


def insert_extreme(data: bytes, chance: random.Random) -> bytes:
    form = chance.choice(("<H", ">H", "<I", ">I"))
    value = struct.pack(form, chance.choice(EXTREMES) % (1 << 8 * struct.calcsize(form)))
    place = _place(data, chance)
    return data[:place] + value + data[place + (len(value) if chance.random() < 0.8 else 0) :]


def splice(data: bytes, chance: random.Random) -> bytes:
    other = seeds()[chance.choice(sorted(seeds()))]
    return data[: _place(data, chance)] + other[_place(other, chance) :]


def append(data: bytes, chance: random.Random) -> bytes:
    """Put one file behind or inside another: a polyglot."""
    other = chance.choice((*seeds().values(), b"<script>alert(1)</script>", b"PK\x03\x04", b"%PDF-1.7", b"%!PS\n"))
    place = chance.choice((len(data), len(data), _place(data, chance)))
    return data[:place] + other + data[place:] if chance.random() < 0.8 else other + data


def change_part(data: bytes, chance: random.Random) -> bytes:
    """Change, duplicate, move or delete a chunk, segment, box or entry; its length and checksum stay valid."""
    parts = list(_parts(data))
    if not parts:
        return insert_extreme(data, chance)
    place = chance.randrange(len(parts))
    match chance.randrange(5):
        case 0:
            del parts[place]
        case 1:
            parts[place:place] = [parts[place]] * chance.choice((1, 3, 300))
        case 2:
            parts[place], parts[-place] = parts[-place], parts[place]
        case _:
            damage = chance.choice((flip_bits, insert_extreme, insert_extreme, truncate, overwrite))
            parts[place] = (parts[place][0], damage(parts[place][1], chance))
    return _joined(data, parts)


def add_exif(data: bytes, chance: random.Random) -> bytes:
    """Add an EXIF directory that points to itself, has impossible values, or claims more entries than it has."""
    values = chance.choice(((6, 1), (0x0112, 65535), (2**32 - 1, 2**32 - 1), (0, 8)))
    tags = [(0x0112, 3, values[0]), (0x8769, 4, 8), (0x8825, 4, 8), (0xA005, 4, 8), (0x010E, 2, values[1])]
    entries = [
        struct.pack("<HHII", tag, kind, chance.choice((1, 1, 9, 2**31)), value % 2**32) for tag, kind, value in tags
    ]
    exif = b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + b"".join(entries) + struct.pack("<I", 8)
    if data.startswith(PNG):
        return data[:33] + chunk(b"eXIf", exif) + data[33:]
    if data.startswith(b"\xff\xd8"):
        content = b"Exif\0\0" + exif
        return (
            data[:2] + (b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content) * chance.choice((1, 40)) + data[2:]
        )
    return _joined(data, [*_parts(data), (b"EXIF", exif)]) if data.startswith(b"RIFF") else data + exif


DAMAGES: tuple[Damage, ...] = (
    *(flip_bits, overwrite, truncate, delete_bytes, duplicate_bytes, insert_extreme, insert_extreme, splice, append),
    *(change_part, change_part, change_part, add_exif),
)


def _place(data: bytes, chance: random.Random) -> int:
    """Return a random position, more often near the start, where the sizes are."""
    return chance.randrange((min(len(data), 200) if chance.random() < 0.5 else len(data)) + 1)


def _parts(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield (kind, content) of the chunks of PNG and WebP, JPEG segments, TIFF entries and top-level AVIF boxes."""
    if data.startswith(PNG):
        place = 8
        while place + 12 <= len(data):
            length = struct.unpack_from(">I", data, place)[0]
            yield data[place + 4 : place + 8], data[place + 8 : place + 8 + length]
            place += 12 + length
    elif data.startswith(b"RIFF"):
        place = RIFF
        while place + 8 <= len(data):
            length = struct.unpack_from("<I", data, place + 4)[0]
            yield data[place : place + 4], data[place + 8 : place + 8 + length]
            place += 8 + length + length % 2
    elif data.startswith(b"\xff\xd8"):
        yield from ((found[0][:2], found[0][4:]) for found in re.finditer(rb"\xff[\xc0-\xfe](?s:..)[^\xff]*", data))
    elif data.startswith(b"II*\0") and len(data) > 8:
        start = struct.unpack_from("<I", data, 4)[0]
        count = struct.unpack_from("<H", data, start)[0] if start + 2 <= len(data) else 0
        for place in range(start + 2, min(start + 2 + 12 * count, len(data) - 11), 12):
            yield data[place : place + 2], data[place + 2 : place + 12]
    elif data[4:8] == b"ftyp":
        place = 0
        while place + 8 <= len(data):
            length = max(8, struct.unpack_from(">I", data, place)[0])
            yield data[place + 4 : place + 8], data[place + 8 : place + length]
            place += length


def _joined(data: bytes, parts: list[tuple[bytes, bytes]]) -> bytes:
    if data.startswith(PNG):
        return PNG + b"".join(chunk(*part) for part in parts)
    if data.startswith(b"RIFF"):
        body = b"".join(
            kind + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2) for kind, content in parts
        )
        return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body
    if data.startswith(b"\xff\xd8"):
        return data[:2] + b"".join(kind + struct.pack(">H", min(65535, len(part) + 2)) + part for kind, part in parts)
    if data.startswith(b"II*\0"):
        entries = b"".join(kind + content[:10].ljust(10, b"\0") for kind, content in parts)
        return data[:4] + struct.pack("<I", len(data)) + data[8:] + struct.pack("<H", len(parts)) + entries + bytes(4)
    return b"".join(struct.pack(">I", len(content) + 8) + kind + content for kind, content in parts)


def png_bomb(chance: random.Random) -> bytes:
    """Return a PNG whose text, color profile or pixels expand a thousandfold."""
    head, side = seeds()["png"][8:33], chance.choice((4, 61, 950))
    packed = zlib.compress(bytes(chance.choice((TEXT, 16 * TEXT))), 9)
    extra = chance.choice((b"zTXt", b"iCCP", b"iTXt", b"IDAT", b"fdAT"))
    lead = {b"zTXt": b"a\0\0", b"iCCP": b"a\0\0", b"iTXt": b"a\0\1\0\0\0", b"fdAT": b"\0\0\0\1"}.get(extra, b"")
    head = chunk(b"IHDR", struct.pack(">II", side, side) + head[16:21])
    return (
        PNG + head + chunk(extra, lead + packed) * chance.choice((1, 30)) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    )


def tile_bomb(chance: random.Random) -> bytes:
    return tiled(chance.choice((1, 61)), 47, 16 * chance.choice((4, 1000)), 16 * chance.choice((4, 1000)))


def scan_bomb(chance: random.Random) -> bytes:
    return many_scans(chance.choice((10, 2000)), chance.choice((64, 950)))


def run_bomb(chance: random.Random) -> bytes:
    width, height = chance.choice(((900_000, 1), (1, 900_000), (60_000, 15)))
    return runs(width, height, chance.choice((b"\1\0\0\0", b"\0\2\0\xff\0\2\xff\xff", b"\0\0")), chance.choice((1, 2)))


def comment_bomb(chance: random.Random) -> bytes:
    """Return a PPM with very long comments or white space, which are parsed byte by byte."""
    much = chance.choice((b"#\n", b"#", b" ", b"\n# a comment", b"1")) * chance.choice((1000, 500_000))
    return (
        chance.choice((b"P3 90 90 255\n", b"P1 90 90\n", b"P5 ", b"P6 3 ", b"P6 3 # "))
        + much
        + b"\n3 3 255\n"
        + bytes(99)
    )


def frame_bomb(chance: random.Random) -> bytes:
    """Return an animation of very many frames, or with a frame that is larger than the image."""
    if chance.random() < 0.5:
        return change_frames(seeds()["gif animated"], chance)
    small = Image.new("P", (8, 8))
    kind = chance.choice(("GIF", "WEBP", "PNG"))
    return written(small, kind, save_all=True, append_images=[Image.new("P", (8, 8), n % 3) for n in range(300)])


def change_frames(data: bytes, chance: random.Random) -> bytes:
    places = [found.start() for found in re.finditer(b"\x2c", data)]
    place = chance.choice(places)
    size = struct.pack("<4H", *(chance.choice((0, 5, 60, 2000, 65535)) for _ in range(4)))
    return data[: place + 1] + size + data[place + 9 :]


BOMBS = (png_bomb, tile_bomb, scan_bomb, run_bomb, comment_bomb, frame_bomb)
