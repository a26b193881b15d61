import contextlib
import io
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from resode.data import decode, resize_and_crop
from resode.data.image_file import MAX_PIXELS
from resode.errors import InputError, IntegrityError
from tests.data.conftest import encoded, random_pixels

COLOUR, GREY = random_pixels(1)[0], random_pixels(1, channels=1)[0]


def saved(image: Image.Image, form: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("BMP", {}),
        ("TIFF", {}),
        ("PPM", {}),
        ("PNG", {"optimize": True}),
    ],
)
@pytest.mark.parametrize("pixels", [COLOUR, GREY], ids=["colour", "grey"])
def test_lossless_formats_give_the_very_pixels(form, options, pixels):
    found = decode(encoded(pixels, form, **options), name="x")
    assert found.dtype == np.uint8
    assert np.array_equal(found, np.broadcast_to(pixels, found.shape))
    assert found.shape[2] == (3 if form == "WEBP" else pixels.shape[2])


def test_jpeg_is_read_as_grey_or_colour():
    flat = np.full((16, 16, 3), (200, 30, 90), np.uint8)
    assert np.abs(decode(encoded(flat, "JPEG", quality=95), name="x").astype(int) - flat).max() <= 3
    assert decode(encoded(flat[:, :, :1], "JPEG"), name="x").shape == (16, 16, 1)


def test_a_path_and_its_bytes_are_the_same(tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(encoded(COLOUR))
    assert np.array_equal(decode(path, name="x"), decode(str(path), name="x"))
    assert np.array_equal(decode(path, name="x"), COLOUR)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_exif_orientation_is_applied(orientation, form):
    """The eight orientations of EXIF: how rows and columns are stored."""
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :16] = 255  # top left is white
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if form == "WEBP" else {"quality": 95} if form == "JPEG" else {}
    content = encoded(np.ascontiguousarray(stored), form, exif=exif.tobytes(), **options)
    assert np.abs(decode(content, name="x").astype(int) - upright).max() <= 12


def test_transparency_is_composited_over_white():
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[0, 0] = (10, 20, 30, 255)
    rgba[0, 1] = (0, 0, 0, 128)
    found = decode(saved(Image.fromarray(rgba)), name="x")
    assert found[0, 0].tolist() == [10, 20, 30]
    assert found[0, 1].tolist() == [127, 127, 127]
    assert found[1, 1].tolist() == [255, 255, 255]
    grey = decode(saved(Image.fromarray(rgba[:, :, 2:], "LA")), name="x")
    assert grey.shape == (4, 4, 1)
    assert grey[0, 0] == 30
    assert grey[1, 1] == 255


def test_a_transparent_palette_colour_is_white_too():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    assert decode(saved(image), name="x").tolist() == [[[255, 0, 0], [0, 0, 255]]]
    assert decode(saved(image, transparency=0), name="x").tolist() == [[[255, 255, 255], [0, 0, 255]]]
    assert decode(saved(image, "GIF"), name="x").tolist() == [[[255, 0, 0], [0, 0, 255]]]


def test_sixteen_bit_grey_is_scaled_to_eight():
    values = np.array([[0, 128, 129, 32768, 65535]], np.uint16)
    expected = np.round(values / 257).astype(np.uint8)
    for form in ("PNG", "TIFF", "PPM"):
        assert np.array_equal(decode(saved(Image.fromarray(values), form), name="x")[:, :, 0], expected)


def test_other_modes():
    assert decode(saved(Image.new("1", (2, 1), 1)), name="x").tolist() == [[[255], [255]]]
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert np.abs(decode(saved(cmyk, "JPEG"), name="x")[0, 0].astype(int) - (255, 0, 0)).max() <= 3
    with pytest.raises(InputError, match="floating-point"):
        decode(saved(Image.new("F", (2, 2)), "TIFF"), name="x")
    with pytest.raises(InputError, match="32-bit"):
        decode(saved(Image.fromarray(np.full((2, 2), 70000, np.int32)), "TIFF"), name="x")


def test_of_several_frames_the_first_counts():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    content = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(content, name="x")[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("content", [b"", b"label,0\n", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n"])
def test_a_file_that_is_no_image_is_an_input_error(content):
    with pytest.raises(InputError, match=r"notes\.txt is not an image"):
        decode(content, name="notes.txt")


def test_a_missing_file_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        decode(tmp_path / "absent.png", name="absent.png")


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "TIFF"])
@pytest.mark.parametrize("keep", [12, 0.5, 0.9])
def test_a_truncated_image_is_corrupt(form, keep):
    content = encoded(random_pixels(1, side=64)[0], form)
    with pytest.raises(IntegrityError, match=r"x\.png: truncated or corrupt"):
        decode(content[: keep if keep == 12 else int(len(content) * keep)], name="x.png")


@given(st.data())
def test_damaged_bytes_raise_nothing_else(data):
    content = bytearray(encoded(COLOUR, data.draw(st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "TIFF"]))))
    for _ in range(3):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(InputError, IntegrityError):
        decode(bytes(content), name="x")


def bomb(width: int, height: int) -> bytes:
    """A small PNG that claims to be huge."""
    content = bytearray(encoded(COLOUR))
    content[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


@pytest.mark.parametrize("side", [8193, 9600, 20000, 60000])
def test_a_decompression_bomb_is_hostile(side):
    with pytest.raises(IntegrityError, match=f"more than {MAX_PIXELS:,} pixels"):
        decode(bomb(side, side), name="x.png")


def test_fit_scales_and_crops_the_centre():
    ramp = np.broadcast_to(np.arange(12, dtype=np.uint8)[None, :, None] * 20, (4, 12, 3))
    assert np.array_equal(resize_and_crop(ramp, size=(4, 4), channels=3), ramp[:, 4:8])
    assert np.array_equal(
        resize_and_crop(ramp.transpose(1, 0, 2), size=(4, 4), channels=3), ramp.transpose(1, 0, 2)[4:8]
    )
    flat = np.full((37, 91, 1), 77, np.uint8)
    assert np.array_equal(
        resize_and_crop(flat, size=(10, 20), channels=1), np.full((10, 20, 1), 77, np.uint8)
    )


def test_fit_shrinks_by_averaging():
    checker = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)[:, :, None]
    assert np.abs(resize_and_crop(checker, size=(8, 8), channels=1).astype(int) - 127).max() <= 1


def test_fit_changes_channels():
    red = np.full((2, 2, 3), (255, 0, 0), np.uint8)
    assert resize_and_crop(red, size=(2, 2), channels=1).tolist() == [[[76], [76]]] * 2
    assert np.array_equal(resize_and_crop(GREY, size=(8, 8), channels=3), np.repeat(GREY, 3, axis=2))
    assert resize_and_crop(COLOUR, size=(8, 8), channels=3) is COLOUR


@pytest.mark.parametrize("size", [(28, 28), (7, 7), (64, 64), (10, 20)])
def test_fit_takes_every_size(size):
    """Proportions whose product rounds up once asked for a box larger than the image (29x29 to 28)."""
    for height in range(1, 65):
        for width in range(1, 65):
            assert resize_and_crop(np.zeros((height, width, 1), np.uint8), size=size, channels=1).shape == (
                *size,
                1,
            )
