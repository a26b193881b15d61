"""Decode one image file to uint8 pixels (H, W, C): C = 1 if the file is grey, otherwise 3 (sRGB as stored).

- Formats: PNG, JPEG, WebP, BMP, GIF, TIFF, PPM/PGM; the first frame of an animation.
- EXIF orientation is applied.
- Transparency (alpha, palette or colour key) is composited over white.
- Palette and CMYK become RGB; black and white 0 and 255; 16-bit grey v becomes v / 257, rounded.
- An image of more than 2^26 pixels (8192 x 8192) after decompression is refused as hostile.
"""

import io
import os
import stat
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from resode.data.images import Pixels
from resode.errors import InputError, IntegrityError

MAX_PIXELS: Final = 1 << 26
FORMATS: Final = (
    "PNG",
    "JPEG",
    "WEBP",
    "BMP",
    "GIF",
    "TIFF",
    "PPM",
)  # no format that is a program, such as EPS
_MAGIC: Final = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*")
_GREY: Final = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N"})


class NoImageError(InputError):
    """A file that is no image of a known format."""


def decode(source: str | Path | bytes, *, name: str) -> Pixels:
    """Decode one image file.

    Args:
        source: path or bytes of the file.
        name: its name in error messages.

    Returns:
        `(H, W, 1)` or `(H, W, 3)` uint8.

    Raises:
        InputError: the file cannot be read, or its pixels are not of 8 or 16 bits.
        NoImageError: it is not an image.
        IntegrityError: the image is truncated, corrupt or larger than `MAX_PIXELS`.
    """
    content = source if isinstance(source, bytes) else _read(Path(source), name)
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            ImageOps.exif_transpose(image, in_place=True)
            return pixels_of(image, name)
    except (InputError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise IntegrityError(f"{name}: more than {MAX_PIXELS:,} pixels; such images are refused") from error
    except Exception as error:  # decoders can raise anything on hostile bytes
        if isinstance(error, UnidentifiedImageError) and not _has_image_header(content):
            raise NoImageError(f"{name} is not an image ({', '.join(FORMATS)} are read)") from error
        raise IntegrityError(f"{name}: truncated or corrupt image ({_reason(error)})") from error


def resize_and_crop(pixels: Pixels, *, size: tuple[int, int], channels: int) -> Pixels:
    """Resize to cover `size`, crop the centre, and convert between grey and RGB.

    The largest centred box with the aspect ratio of `size` is resized bilinearly, antialiased when it
    shrinks. Grey to RGB repeats the channel; RGB to grey is Rec. 601 luma.

    Args:
        pixels: `(H, W, C)` uint8.
        size: (H, W) of the result.
        channels: channels of the result, 1 or 3.

    Returns:
        `(*size, channels)` uint8; the input itself if nothing changes.
    """
    height, width, own_channels = pixels.shape
    if (height, width) == size and own_channels == channels:
        return pixels
    image = Image.fromarray(pixels[:, :, 0] if own_channels == 1 else pixels)
    if own_channels != channels:
        image = image.convert("L" if channels == 1 else "RGB")
    if (height, width) != size:
        image = ImageOps.fit(image, size[::-1], Image.Resampling.BILINEAR)
    return np.array(image).reshape(*size, channels)


def _read(path: Path, name: str) -> bytes:
    try:
        kind = path.stat().st_mode
        if stat.S_ISDIR(kind):
            os.scandir(path).close()  # fails with the reason why the folder could not be listed
        if not stat.S_ISREG(kind):  # reading a pipe would wait for ever
            raise InputError(f"{name} is not a regular file")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{name} cannot be read ({error.strerror or error})") from error


def pixels_of(image: Image.Image, name: str) -> Pixels:
    """The pixels of an opened image: `(H, W, 1)` or `(H, W, 3)` uint8.

    Raises:
        InputError: its pixels are not of 8 or 16 bits.
    """
    if image.mode.startswith("I"):
        return _sixteen_bits(np.asarray(image), name)
    if image.mode == "F":
        raise InputError(f"{name} holds floating-point pixels; give 8- or 16-bit pixels")
    grey = image.mode in _GREY
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    mode = "L" if grey else "RGB"
    pixels = np.array(image if image.mode == mode else image.convert(mode))
    return pixels[:, :, None] if grey else pixels


def _sixteen_bits(values: npt.NDArray[np.generic], name: str) -> Pixels:
    """Scale 0 ... 65535 to 0 ... 255: (v + 128) // 257 is v / 257, rounded."""
    wide = values.astype(np.int64)
    if wide.min() < 0 or wide.max() > 65535:
        raise InputError(
            f"{name} holds 32-bit pixels ({wide.min()} to {wide.max()}); give 8- or 16-bit pixels"
        )
    return ((wide + 128) // 257).astype(np.uint8)[:, :, None]


def _has_image_header(content: bytes) -> bool:
    return content.startswith(_MAGIC) or (content[:4] == b"RIFF" and content[8:12] == b"WEBP")


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
