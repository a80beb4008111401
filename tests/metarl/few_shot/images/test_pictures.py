"""Pictures of every kind, with known pixels: read as a viewer shows them, or refused by name."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from metarl.few_shot.images.pictures import (
    MOST_BYTES,
    PictureForm,
    Skipped,
    decoded,
    folders_in,
    is_picture_name,
    pictures_in,
    read_bytes,
    read_picture,
)
from metarl.runs import RunError

WIDE = np.array([[127 * 257, 0, 65535], [300, 1000, 40000]], np.uint16)  # 16 bits
AS_EIGHT = [[127, 0, 255], [1, 4, 156]]
RED = Image.new("RGB", (3, 2), (200, 10, 30))


def saved(image, kind="PNG", **options):
    """The content of a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(content):
    return np.asarray(decoded(content, "x.png")).tolist()


def png(width, height, bits, colour, rows, transparent=b""):
    """A PNG file, made by hand."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    middle = chunk(b"tRNS", transparent) if transparent else b""
    return b"\x89PNG\r\n\x1a\n" + header + middle + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "content",
    [
        saved(Image.fromarray(WIDE)),
        saved(Image.fromarray(WIDE), "TIFF"),
        saved(Image.fromarray(WIDE), "TIFF", compression="tiff_lzw"),
        saved(Image.frombytes("I;16B", (3, 2), WIDE.astype(">u2").tobytes()), "TIFF"),
        saved(Image.fromarray(65535 - WIDE), "TIFF", tiffinfo={262: 0}),  # in which white is 0
    ],
)
def test_sixteen_bits_become_eight(content):
    assert pixels(content) == AS_EIGHT


def test_sixteen_bits_of_colour_become_eight():
    row = b"\0" + struct.pack(">6H", 127 * 257, 65535, 0, 0, 257, 514)
    assert pixels(png(2, 1, 16, 2, row)) == [[[127, 255, 0], [0, 1, 2]]]


@pytest.mark.parametrize(
    ("row", "bits", "expected"),
    [(0b00011011, 2, [[0, 85, 170, 255]]), (0b00001111, 4, [[0, 255]]), (0b10100000, 1, [[255, 0, 255, 0]])],
)
def test_few_bits_become_eight(row, bits, expected):
    assert pixels(png(len(expected[0]), 1, bits, 0, bytes([0, row]))) == expected


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_becomes_rgb(kind):
    found = decoded(saved(RED.convert("CMYK"), kind, quality=100, subsampling=0), "x.jpg")
    assert np.abs(np.asarray(found).astype(int) - [200, 10, 30]).max() <= 2


def transparent(kind, mode="RGBA"):
    """Red, with a pixel that is not seen and one that is half seen, both black otherwise."""
    image = RED.convert("RGBA")
    image.putpixel((0, 0), (0, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 128))
    return saved(image.convert(mode), kind, **({"lossless": True} if kind == "WEBP" else {}))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_transparent_pixels_are_seen_on_white(kind):
    assert pixels(transparent(kind))[0] == [[255, 255, 255], [127, 127, 127], [200, 10, 30]]


def test_palettes_and_single_transparent_values_are_read():
    palette = RED.copy()
    palette.putpixel((0, 0), (0, 0, 0))
    palette = palette.quantize(4)
    assert pixels(saved(palette))[0] == [[0, 0, 0], [200, 10, 30], [200, 10, 30]]
    black = palette.getpixel((0, 0))
    assert pixels(saved(palette, transparency=black))[0][:2] == [[255, 255, 255], [200, 10, 30]]
    half = bytes(128 if number == black else 255 for number in range(4))
    assert pixels(saved(palette, transparency=half))[0][:2] == [[127, 127, 127], [200, 10, 30]]
    assert pixels(saved(Image.new("L", (1, 1), 7), transparency=7)) == [[[255, 255, 255]]]
    for bits, row, value in ((2, 0b01000000, 1), (4, 0x70, 7)):  # a pixel of this value and one of 0
        seen = np.array(decoded(png(2, 1, bits, 0, bytes([0, row]), struct.pack(">H", value)), "x"))[0, :, 0]
        assert seen.tolist() == [255, 0]
    assert pixels(saved(Image.fromarray(WIDE), transparency=300)) == [[127, 0, 255], [255, 4, 156]]
    assert pixels(saved(Image.new("LA", (1, 1), (9, 0)))) == [[[255, 255, 255]]]


NUMBERS = np.arange(0, 240, 40, dtype=np.uint8).reshape(2, 3)
UPRIGHT = {  # by the tag, what numpy makes of a picture with it
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: np.transpose,
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).T,
    8: np.rot90,
}


@pytest.mark.parametrize("tag", UPRIGHT)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG", "WEBP"])
def test_orientation_tags_turn_pictures(kind, tag):
    exif = Image.Exif()
    exif[274] = tag
    found = decoded(saved(Image.fromarray(np.kron(NUMBERS, np.ones((16, 16), np.uint8))), kind, exif=exif), "x")
    middles = np.asarray(found.convert("L"))[8::16, 8::16].astype(int)
    assert np.abs(middles - UPRIGHT[tag](NUMBERS)).max() <= 4
    sixteen = decoded(saved(Image.fromarray(NUMBERS.astype(np.uint16) * 257), "PNG", exif=exif), "x")
    assert np.array_equal(np.asarray(sixteen), UPRIGHT[tag](NUMBERS))


def test_the_first_view_of_a_telephones_photograph_is_read():
    found = decoded(saved(RED, "MPO", save_all=True, append_images=[Image.new("RGB", (3, 2))], quality=100), "x.jpg")
    assert np.abs(np.asarray(found).astype(int) - [200, 10, 30]).max() <= 10


BITS = b"\x02\x01\x03\x00\x01\x00\x00\x00"  # the tag of the number of bits, in TIFF
TWELVE_BITS = saved(Image.fromarray(WIDE), "TIFF").replace(BITS + b"\x10", BITS + b"\x0c")
MOVING = {"save_all": True, "append_images": [Image.new("RGB", (3, 2), 1)]}


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (saved(RED, "PNG", **MOVING), "holds 2 pictures"),
        (saved(RED, "WEBP", **MOVING), "holds 2 pictures"),
        (saved(RED, "TIFF", **MOVING), "holds 2 pictures"),
        (saved(RED, "GIF"), "of another kind; allowed: JPEG, PNG"),
        (b"", "is damaged or of another kind"),
        (b"hello", "is damaged or of another kind"),
        (saved(RED.resize((99, 99)), "PNG")[:-80], "is damaged: .*truncated"),
        (saved(RED.resize((99, 99)), "JPEG")[:-80], "is damaged: .*truncated"),
        (saved(RED.resize((99, 99)), "BMP")[:-80], "is damaged: .*truncated"),
        (saved(RED.resize((99, 99)), "TIFF")[:-200], "is damaged"),
        (saved(RED.resize((99, 99)), "WEBP")[:-20], "is damaged"),
        (saved(Image.fromarray(WIDE.astype(np.float32)), "TIFF"), "pixels of the kind F"),
        (saved(Image.fromarray(WIDE.astype(np.int32)), "TIFF"), "pixels of the kind I;"),
        (saved(Image.new("LAB", (2, 2)), "TIFF"), "pixels of the kind LAB"),
        (png(30_000, 30_000, 8, 0, b"\0"), "too many pixels"),
        (png(10_000, 9_000, 8, 0, b"\0"), "too many pixels"),
        (png(1, 1, 16, 2, b"\0" + bytes(6), struct.pack(">3H", 0, 0, 0)), "16 bits and a transparent colour"),
        (TWELVE_BITS, "has 12 bits; allowed: 8 or 16"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_faithfully_is_refused_by_name(content, line):
    with pytest.raises(RunError, match=rf"^a/b\.png .*{line}"):
        decoded(content, "a/b.png")


def test_only_regular_files_are_read(tmp_path):
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    for name in ("folder.png", "pipe.png", "device.png"):
        with pytest.raises(RunError, match=f"{name} is not a regular file"):
            read_picture(tmp_path / name)
    (tmp_path / "nowhere.png").symlink_to(tmp_path / "none.png")
    for name in ("none.png", "nowhere.png", "nu\0l.png"):
        with pytest.raises(RunError, match="cannot be read: "):
            read_bytes(tmp_path / name)
    with open(tmp_path / "large.png", "wb") as file:
        file.truncate(MOST_BYTES + 1)
    with pytest.raises(RunError, match=rf"large.png has {MOST_BYTES + 1} bytes"):
        read_bytes(tmp_path / "large.png")
    RED.save(tmp_path / "linked.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "linked.png")
    assert read_picture(tmp_path / "link.png").size == (3, 2)


def test_endings_count_in_any_case_and_everything_else_is_counted(tmp_path):
    read = ["a.JPG", "b.jpeg", "c.PNG", "d.WebP", "e.bmp", "f.Tif", "g.TIFF"]
    for name in [*read, ".hidden.png", "notes.TXT", "more.txt", "README", "h.gif"]:
        (tmp_path / name).touch()
    for name in ("inner", ".git"):
        (tmp_path / name).mkdir()
    skipped = Skipped()
    assert [path.name for path in pictures_in(tmp_path, skipped)] == read
    assert skipped.hidden == 2
    assert skipped.others == {".txt": 2, "without ending": 1, ".gif": 1, "folders": 1}
    [hidden, others] = skipped.notes(tmp_path)
    assert "2 hidden files or folders" in hidden
    assert "5 things" in others
    assert "2 .txt" in others
    folders = Skipped()
    assert [path.name for path in folders_in(tmp_path, folders)] == ["inner"]
    assert (folders.hidden, folders.others.total()) == (2, 11)
    assert Skipped().notes(tmp_path) == []
    assert not is_picture_name("png")


def test_pictures_take_a_form():
    grey = PictureForm(4, 5, channels=1).of(RED)
    assert (grey.shape, grey.dtype) == ((4, 5, 1), np.uint8)
    luminance = round(0.299 * 200 + 0.587 * 10 + 0.114 * 30)
    assert (grey == luminance).all()
    assert (PictureForm(4, 5, channels=1, inverted=True).of(RED) == 255 - luminance).all()
    assert (PictureForm(4, 5).of(RED) == [200, 10, 30]).all()
    assert (PictureForm(4, 5).of(Image.new("L", (9, 9), 7)) == 7).all()
    wide = np.zeros((8, 12, 3), np.uint8)
    wide[:, 6:] = 255  # dark on the left, bright on the right
    found = PictureForm(4, 6).of_array(wide)
    assert found.shape == (4, 6, 3)
    assert (found[:, :2] < 50).all()
    assert (found[:, 4:] > 200).all()
    half = np.zeros((8, 8, 1), np.uint8)
    half[:, 4:] = 200
    found = PictureForm(4, 4).of_array(half)
    assert found.shape == (4, 4, 3)
    assert found[0, :, 0].tolist()[0] < 30 < 170 < found[0, :, 0].tolist()[-1]
    with pytest.raises(ValueError, match="channels = 4; allowed: 1 or 3"):
        PictureForm(4, 4, 4)
