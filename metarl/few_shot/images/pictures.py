"""Pictures: files of the usual kinds as uint8 arrays of one size, read as a viewer shows them, or refused by name.

Orientation tags turn a picture, transparent pixels are seen on white, palettes and CMYK become RGB, and 16 bits become
8. What cannot be read so, such as an animation or numbers of 32 bits, is refused. Colour profiles are not applied.
"""

import io
import stat
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from metarl.core.validation import require
from metarl.runs import RunError

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
_FORMATS = (
    "JPEG",
    "PNG",
    "WEBP",
    "BMP",
    "TIFF",
)  # those of JPEG include MPO, a telephone's photograph with further views
MOST_BYTES = 1 << 28  # of a file; larger ones are no pictures that one would classify
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # tags of TIFF


@dataclass(frozen=True)
class PictureForm:
    """What pictures are turned into before a network sees them.

    Attributes:
        height, width: to which pictures are resized, whatever their aspect ratio.
        channels: 1 for grey, 3 for RGB.
        inverted: whether white becomes 0, as ink on paper is seen by networks.
    """

    height: int
    width: int
    channels: int = 3
    inverted: bool = False

    def __post_init__(self) -> None:
        require(self.channels in (1, 3), "channels", self.channels, "1 or 3")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return self.height, self.width, self.channels

    def of(self, picture: Image.Image) -> np.ndarray:
        """Return a picture as (H, W, C) uint8."""
        converted = picture.convert("L" if self.channels == 1 else "RGB")
        resized = converted.resize((self.width, self.height), Image.Resampling.LANCZOS)
        array = np.atleast_3d(np.asarray(resized))
        return 255 - array if self.inverted else array

    def of_array(self, array: np.ndarray) -> np.ndarray:
        """Return a picture (H, W, C) uint8, with 1 or 3 channels, as one of this form."""
        return self.of(Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array))


@dataclass
class Skipped:
    """What lies among pictures and is not read, counted.

    Attributes:
        hidden: files and folders whose names begin with a dot.
        others: files by ending, and folders, where pictures are due.
    """

    hidden: int = 0
    others: Counter = field(default_factory=Counter)

    def notes(self, folder: Path) -> list[str]:
        """What a user should be told, a line each."""
        found = []
        if self.hidden:
            found.append(f"{folder}: {self.hidden} hidden files or folders are not read")
        if self.others:
            listed = ", ".join(f"{count} {what}" for what, count in sorted(self.others.items()))
            found.append(f"{folder}: {self.others.total()} things that are no pictures are not read ({listed})")
        return found


def is_picture_name(name: str) -> bool:
    """Whether a file of this name is read as a picture, whatever the case of its ending."""
    return name.lower().endswith(ENDINGS)


def pictures_in(folder: Path, skipped: Skipped) -> list[Path]:
    """Return the pictures of a folder by name; what else is in it, is counted."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            skipped.hidden += 1
        elif is_picture_name(path.name):
            found.append(path)
        else:
            skipped.others["folders" if path.is_dir() else f"{path.suffix.lower() or 'without ending'}"] += 1
    return found


def folders_in(folder: Path, skipped: Skipped) -> list[Path]:
    """Return the folders in a folder by name; what else is in it, is counted."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            skipped.hidden += 1
        elif path.is_dir():
            found.append(path)
        else:
            skipped.others[f"{path.suffix.lower() or 'without ending'} beside folders"] += 1
    return found


def read_bytes(path: Path) -> bytes:
    """Return the content of a picture's file; RunError, naming it, for what is no regular file, or cannot be read."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise RunError(f"{path} is not a regular file; allowed: a picture")
        if status.st_size > MOST_BYTES:
            raise RunError(f"{path} has {status.st_size} bytes; allowed: at most {MOST_BYTES}")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise RunError(f"{path} cannot be read: {reason}") from error


def read_picture(path: Path) -> Image.Image:
    """Return the picture of a file, see `decoded`."""
    return decoded(read_bytes(path), str(path))


def decoded(content: bytes, name: str) -> Image.Image:
    """Return the picture in the content of a file: upright, opaque, of 8 bits, grey (L) or RGB.

    Args:
        content: of the file.
        name: of the file, for errors.

    Raises:
        RunError: a damaged file, one of another kind, or one that cannot be turned into such a picture faithfully.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of tags that cannot be read
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
                return _faithful(image, name)
    except (RunError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise RunError(f"{name} has too many pixels; allowed: at most {Image.MAX_IMAGE_PIXELS}") from error
    except UnidentifiedImageError as error:
        raise RunError(f"{name} is damaged or of another kind; allowed: JPEG, PNG, WebP, BMP or TIFF") from error
    except Exception as error:  # Pillow raises errors of many kinds for damaged files
        raise RunError(f"{name} is damaged: {str(error) or type(error).__name__}") from error


def _faithful(image: Image.Image, name: str) -> Image.Image:
    """The opened image as `decoded` returns it."""
    count = getattr(image, "n_frames", 1)
    if count > 1 and image.format != "MPO":
        raise RunError(f"{name} holds {count} pictures; allowed: one, no animation")
    raw = [str(tile[3]) for tile in getattr(image, "tile", ())]  # how Pillow reads the numbers in the file
    if image.mode == "RGB" and "transparency" in image.info and any("16" in of for of in raw):
        raise RunError(f"{name} has 16 bits and a transparent colour; allowed: an alpha channel, or 8 bits")
    sixteen = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")
    tags = dict(getattr(image, "tag_v2", {}))
    if sixteen and tags.get(_BITS_PER_SAMPLE, (16,)) != (16,):
        raise RunError(f"{name} has {tags[_BITS_PER_SAMPLE][0]} bits; allowed: 8 or 16")
    image.load()
    upright = ImageOps.exif_transpose(image)
    if sixteen:
        return _of_sixteen_bits(upright, tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO)
    if upright.mode == "L" and isinstance(key := upright.info.get("transparency"), int):
        # Pillow scales grey of 2 and 4 bits to 8, but not the number that is transparent
        bits = next((int(of[2:]) for of in raw if of in ("L;2", "L;4")), 8)
        upright.info["transparency"] = key * 255 // (2**bits - 1)
    if upright.has_transparency_data:
        layer = upright.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    if upright.mode in ("I", "F", "LAB"):
        raise RunError(f"{name} holds pixels of the kind {upright.mode}; allowed: grey, RGB or CMYK of 8 or 16 bits")
    return upright.convert("L" if upright.mode in ("1", "L") else "RGB")


def _of_sixteen_bits(image: Image.Image, white_is_zero: bool) -> Image.Image:
    """A grey picture of 16 bits, reduced to 8."""
    values = np.array(image).astype(np.int64)
    if (transparent := image.info.get("transparency")) is not None:
        values[values == transparent] = 65535  # seen on white
    if white_is_zero:
        values = 65535 - values
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))
