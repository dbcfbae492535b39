"""Picture files of every kind that is read, and what can be wrong with them; each case follows from two numbers.

Most damage keeps the outer form of a file (lengths, checksums, boxes), so that it reaches the decoder behind it.
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


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Coloured noise that grows brighter to the right."""
    noise = np.random.default_rng(seed).integers(0, 100, (height, width, 3))
    return Image.fromarray((noise + np.linspace(0, 150, width)[None, :, None]).astype(np.uint8))


def written(drawn: Image.Image, kind: str, **options: object) -> bytes:
    """A file of that kind."""
    file = io.BytesIO()
    drawn.save(file, kind, **options)
    return file.getvalue()


@functools.cache
def seeds() -> dict[str, bytes]:
    """Whole files by what they are."""
    rgb, grey = picture(61, 47), picture(61, 47).convert("L")
    rgba, ink = rgb.copy(), rgb.convert("CMYK")
    rgba.putalpha(grey)
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    wide, real = Image.fromarray(np.asarray(grey).astype(np.int32)), Image.fromarray(np.asarray(grey) / np.float32(255))
    frames = {"save_all": True, "append_images": [picture(61, 47, seed).quantize(16) for seed in (1, 2)]}
    several = {"save_all": True, "append_images": [picture(61, 47, 1), picture(30, 20, 2)]}
    turned = Image.Exif()
    turned[0x0112] = 6
    turned[0x010E] = "a description"
    files = {
        "jpeg": written(rgb, "JPEG"),
        "jpeg progressive": written(rgb, "JPEG", progressive=True, quality=50),
        "jpeg of inks": written(ink, "JPEG"),
        "jpeg grey, turned": written(grey, "JPEG", exif=turned, comment=b"a comment", icc_profile=b"p" * 300),
        "jpegs in one": written(rgb, "MPO", save_all=True, append_images=[rgb]),
        "png": written(rgb, "PNG", exif=turned, icc_profile=b"p" * 300),
        "png 1 bit": written(grey.convert("1"), "PNG"),
        "png 16 bits": written(deep, "PNG"),
        "png palette": written(rgb.quantize(11), "PNG", transparency=b"\x00\x80", bits=4),
        "png alpha": written(rgba, "PNG"),
        "png interlaced": _interlaced(),
        "png animated": written(rgb, "PNG", **several, default_image=True),
        "gif": written(rgb.quantize(32), "GIF", comment=b"a comment"),
        "gif animated": written(rgb.quantize(16), "GIF", **frames, duration=20, loop=3, transparency=1, disposal=2),
        "webp": written(rgb, "WEBP", exif=turned),
        "webp lossless": written(rgba, "WEBP", lossless=True),
        "webp animated": written(rgba, "WEBP", save_all=True, append_images=[rgba.rotate(9)]),
        "bmp": written(rgb, "BMP"),
        "bmp palette": written(rgb.quantize(11), "BMP"),
        "bmp 1 bit": written(grey.convert("1"), "BMP"),
        "bmp alpha": written(rgba, "BMP"),
        "bmp runs": runs(61, 47, b"\x3d\x02\0\0" * 44 + b"\0\2\0\2" + b"\0\4\1\2\3\4" + b"\x39\x01"),
        "ppm": written(rgb, "PPM"),
        "pgm odd": b"P5 # odd\n9 7\n100\n" + bytes(range(63)),
        "pgm deep": b"P5 9 7 4095\n" + bytes(2 * 63),
        "ppm in letters": b"P3 3 2 255\n# text\n" + b"1 2 3 40 50 60\n" * 3,
        "pbm in letters": b"P1\n5 3\n10101 01010\n10101\n",
        "pfm": written(real, "PPM"),
        "avif": written(rgb, "AVIF", exif=turned),
        "avif alpha": written(rgba, "AVIF", quality=50),
        "avif animated": written(rgb, "AVIF", save_all=True, append_images=[rgb.rotate(9)]),
        "tiff pages": written(rgb, "TIFF", **several),
        "tiff 16 bits": written(deep, "TIFF", compression="tiff_lzw"),
        "tiff 32 bits": written(wide, "TIFF"),
        "tiff floats": written(real, "TIFF", compression="tiff_adobe_deflate"),
        "tiff of inks": written(ink, "TIFF", exif=turned),
        "tiff tiled": tiled(61, 47, 32, 16),
        "big tiff": written(rgba, "TIFF", big_tiff=True),
    }
    for way in ("raw", "packbits", "lzw", "tiff_jpeg", "jpeg", "tiff_adobe_deflate", "zstd", "lzma"):
        files[f"tiff {way}"] = written(
            rgb, "TIFF", compression=None if way == "raw" else way.replace("lzw", "tiff_lzw")
        )
    for way in ("tiff_ccitt", "group3", "group4"):
        files[f"tiff {way}"] = written(grey.convert("1"), "TIFF", compression=way)
    return files


def case(seed: int, number: int) -> tuple[str, bytes]:
    """What was done to which file, and the file."""
    chance = random.Random(f"{seed} {number}")
    names = sorted(seeds())
    name = chance.choice(names)
    if chance.random() < 0.04:
        made = chance.choice(BOMBS)
        return f"bomb: {made.__name__}", made(chance)
    data, done = seeds()[name], []
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        damage = chance.choice(DAMAGES)
        data = damage(data, chance)[: 1 << 21]
        done.append(damage.__name__)
    return f"{name}: {', '.join(done)}", data


def chunk(kind: bytes, content: bytes) -> bytes:
    """Of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def runs(width: int, height: int, content: bytes, method: int = 1) -> bytes:
    """A BMP whose pixels are run lengths."""
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8 // method, method, len(content), 0, 0, 16, 0)
    palette = bytes(range(64))
    start = 14 + len(head) + len(palette)
    return b"BM" + struct.pack("<IHHI", start + len(content), 0, 0, start) + head + palette + content


def tiled(width: int, height: int, tile_width: int, tile_height: int, *, method: int = 8) -> bytes:
    """A grey TIFF in compressed tiles, all of the same content."""
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
    """A progressive JPEG whose last pass is said again and again."""
    file = written(Image.new("L", (side_px, side_px)), "JPEG", progressive=True)
    last, end = file.rindex(b"\xff\xda"), file.rindex(b"\xff\xd9")
    return file[:last] + file[last:end] * count + file[end:]


def _interlaced() -> bytes:
    """5 x 5 grey; Pillow writes none. Passes of 1, 1, 2 by 1, 1 by 2 and so on, each row with its filter."""
    rows = [(1, 1), (1, 1), (2, 1), (1, 2), (3, 1), (2, 3), (5, 2)]
    lines = b"".join(b"\0" + bytes(range(width)) for width, count in rows for _ in range(count))
    head = struct.pack(">IIBBBBB", 5, 5, 8, 0, 0, 0, 1)
    return PNG + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def flip_bits(data: bytes, chance: random.Random) -> bytes:
    made = bytearray(data)
    for _ in range(min(len(made), chance.choice((1, 1, 3, 20)))):
        made[_place(data, chance) % len(made)] ^= 1 << chance.randrange(8)
    return bytes(made)


def write_over(data: bytes, chance: random.Random) -> bytes:
    place, length = _place(data, chance), chance.choice((1, 2, 4, 16, 200))
    value = chance.choice((b"\0", b"\xff", b"\x80", bytes([chance.randrange(256)])))
    return (
        data[:place] + (chance.randbytes(length) if chance.random() < 0.3 else value * length) + data[place + length :]
    )


def cut_off(data: bytes, chance: random.Random) -> bytes:
    return data[: _place(data, chance)]


def leave_out(data: bytes, chance: random.Random) -> bytes:
    place = _place(data, chance)
    return data[:place] + data[place + chance.randrange(1, 60) :]


def say_twice(data: bytes, chance: random.Random) -> bytes:
    first, second = sorted((_place(data, chance), _place(data, chance)))
    return data[:second] + data[first:second] * chance.choice((1, 2, 50)) + data[second:]


def put_extreme(data: bytes, chance: random.Random) -> bytes:
    form = chance.choice(("<H", ">H", "<I", ">I"))
    value = struct.pack(form, chance.choice(EXTREMES) % (1 << 8 * struct.calcsize(form)))
    place = _place(data, chance)
    return data[:place] + value + data[place + (len(value) if chance.random() < 0.8 else 0) :]


def splice(data: bytes, chance: random.Random) -> bytes:
    other = seeds()[chance.choice(sorted(seeds()))]
    return data[: _place(data, chance)] + other[_place(other, chance) :]


def append(data: bytes, chance: random.Random) -> bytes:
    """One file behind or inside another: read as the first, as the second, or as none."""
    other = chance.choice((*seeds().values(), b"<script>alert(1)</script>", b"PK\x03\x04", b"%PDF-1.7", b"%!PS\n"))
    place = chance.choice((len(data), len(data), _place(data, chance)))
    return data[:place] + other + data[place:] if chance.random() < 0.8 else other + data


def change_part(data: bytes, chance: random.Random) -> bytes:
    """A chunk, segment, box or entry changed, doubled, moved or left out, with its length and checksum right."""
    parts = list(_parts(data))
    if not parts:
        return put_extreme(data, chance)
    place = chance.randrange(len(parts))
    match chance.randrange(5):
        case 0:
            del parts[place]
        case 1:
            parts[place:place] = [parts[place]] * chance.choice((1, 3, 300))
        case 2:
            parts[place], parts[-place] = parts[-place], parts[place]
        case _:
            damage = chance.choice((flip_bits, put_extreme, put_extreme, cut_off, write_over))
            parts[place] = (parts[place][0], damage(parts[place][1], chance))
    return _joined(data, parts)


def add_exif(data: bytes, chance: random.Random) -> bytes:
    """A directory that points back at itself, holds what cannot be, or more than there is."""
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
    *(flip_bits, write_over, cut_off, leave_out, say_twice, put_extreme, put_extreme, splice, append),
    *(change_part, change_part, change_part, add_exif),
)


def _place(data: bytes, chance: random.Random) -> int:
    """Anywhere, but more often near the start, where the sizes are."""
    return chance.randrange((min(len(data), 200) if chance.random() < 0.5 else len(data)) + 1)


def _parts(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(kind, content) of a PNG's chunks, a WebP's, a JPEG's segments before its pixels, a TIFF's entries, top boxes."""
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
    """Compressed text, colour profile or pixels that are a thousand times what they look like."""
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
    """Much that is no picture, where it is read letter by letter."""
    much = chance.choice((b"#\n", b"#", b" ", b"\n# a comment", b"1")) * chance.choice((1000, 500_000))
    return (
        chance.choice((b"P3 90 90 255\n", b"P1 90 90\n", b"P5 ", b"P6 3 ", b"P6 3 # "))
        + much
        + b"\n3 3 255\n"
        + bytes(99)
    )


def frame_bomb(chance: random.Random) -> bytes:
    """An animation of very many frames, or of one that is larger than the picture."""
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
