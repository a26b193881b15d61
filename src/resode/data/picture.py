"""One image file -> uint8 pixels (H, W, C): C = 1 where the file is grey, otherwise 3 (sRGB as stored).

- Read: PNG, JPEG, WebP, BMP, GIF, TIFF, PPM/PGM; of several frames the first.
- Orientation: EXIF's, applied.
- Transparency (alpha, palette or colour key): composited over white.
- Palette and CMYK: to RGB. Black and white: 0 and 255. 16-bit grey: v / 257, rounded.
- At most 2^26 pixels (8192 x 8192) after decompression: a larger image is refused as hostile.
"""

import io
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from resode.data.images import Pixels
from resode.errors import InputError, IntegrityError

PIXEL_CAP: Final = 1 << 26
FORMATS: Final = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # no format that runs a program
_MAGIC: Final = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*")
_GREY: Final = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N"})


def decode(source: str | Path | bytes, *, name: str) -> Pixels:
    """The pixels of one image file.

    Args:
        source: the file's path or its bytes.
        name: how errors call it.

    Returns:
        `(H, W, 1)` or `(H, W, 3)` uint8.

    Raises:
        InputError: the file cannot be read, is no image, or holds no 8- or 16-bit pixels.
        IntegrityError: the image is truncated, corrupt or larger than `PIXEL_CAP`.
    """
    content = source if isinstance(source, bytes) else _read(Path(source), name)
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > PIXEL_CAP:
                raise Image.DecompressionBombError
            ImageOps.exif_transpose(image, in_place=True)
            return _pixels(image, name)
    except (InputError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise IntegrityError(f"{name}: more than {PIXEL_CAP:,} pixels; such images are refused") from error
    except Exception as error:  # decoders raise anything on hostile bytes
        if isinstance(error, UnidentifiedImageError) and not _begins_like_an_image(content):
            raise InputError(f"{name} is no image ({', '.join(FORMATS)} are read)") from error
        raise IntegrityError(f"{name}: truncated or corrupt image ({_reason(error)})") from error


def fit(pixels: Pixels, *, size: tuple[int, int], channels: int) -> Pixels:
    """Scale to cover (H, W), crop the centre, and change between grey and RGB.

    The largest centred part with the proportions of `size` is scaled bilinearly, with antialiasing
    where it shrinks. Grey to RGB repeats the channel; RGB to grey is Rec. 601 luma.

    Args:
        pixels: `(H, W, C)` uint8.
        size: the wanted (H, W).
        channels: 1 or 3.

    Returns:
        `(*size, channels)` uint8; the input itself where nothing changes.
    """
    height, width, own = pixels.shape
    if (height, width) == size and own == channels:
        return pixels
    image = Image.fromarray(pixels[:, :, 0] if own == 1 else pixels)
    if own != channels:
        image = image.convert("L" if channels == 1 else "RGB")
    if (height, width) != size:
        image = ImageOps.fit(image, size[::-1], Image.Resampling.BILINEAR)
    return np.array(image).reshape(*size, channels)


def _read(path: Path, name: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{name} cannot be read ({error.strerror or error})") from error


def _pixels(image: Image.Image, name: str) -> Pixels:
    if image.mode.startswith("I"):
        return _sixteen_bits(np.asarray(image), name)
    if image.mode == "F":
        raise InputError(f"{name} holds floating-point pixels; give 8- or 16-bit ones")
    grey = image.mode in _GREY
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    mode = "L" if grey else "RGB"
    pixels = np.array(image if image.mode == mode else image.convert(mode))
    return pixels[:, :, None] if grey else pixels


def _sixteen_bits(values: npt.NDArray[np.generic], name: str) -> Pixels:
    """65535 -> 255: (v + 128) // 257 is v / 257, rounded."""
    wide = values.astype(np.int64)
    if wide.min() < 0 or wide.max() > 65535:
        raise InputError(f"{name} holds 32-bit pixels ({wide.min()} to {wide.max()}); give 8- or 16-bit ones")
    return ((wide + 128) // 257).astype(np.uint8)[:, :, None]


def _begins_like_an_image(content: bytes) -> bool:
    return content.startswith(_MAGIC) or (content[:4] == b"RIFF" and content[8:12] == b"WEBP")


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
