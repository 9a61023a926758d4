"""Reading images: colours, depths and orientation; every kind of broken file."""

from __future__ import annotations

import struct

import cv2
import numpy as np
import pytest
from helpers.golden import GOLDEN

from solojax.data.image_io import check_image_size, encoded_size, read_image
from solojax.errors import BrokenImage, InputError

HEIGHT, WIDTH = 40, 56
NOISE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
ENCODINGS = {
    "baseline.jpg": [],
    "progressive.jpg": [cv2.IMWRITE_JPEG_PROGRESSIVE, 1],
    "restarts.jpg": [cv2.IMWRITE_JPEG_RST_INTERVAL, 3],
    "image.png": [],
    "lossless.webp": [cv2.IMWRITE_WEBP_QUALITY, 101],
}


def encode(name: str) -> bytes:
    ok, data = cv2.imencode(name[name.index(".") :], NOISE[..., ::-1], ENCODINGS[name])
    assert ok
    return data.tobytes()


def write(folder, data: bytes, name: str = "image"):
    path = folder / name
    path.write_bytes(data)
    return path


def with_exif(jpeg: bytes, orientation: int, thumbnail: bytes) -> bytes:
    """Inserts an EXIF block with an orientation (tag 0x0112) and a whole JPEG as its thumbnail."""
    entry = struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)
    tiff = b"II*\0" + struct.pack("<IH", 8, 1) + entry + struct.pack("<I", 0)
    block = b"Exif\0\0" + tiff + thumbnail
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + jpeg[2:]


@pytest.mark.parametrize("name", ["image.png", "lossless.webp"])
def test_lossless_pixels_are_rgb(tmp_path, name):
    image = read_image(write(tmp_path, encode(name)))
    assert image.dtype == np.uint8 and image.flags.c_contiguous
    np.testing.assert_array_equal(image, NOISE)


@pytest.mark.parametrize("name", [name for name in ENCODINGS if name.endswith("jpg")])
def test_jpeg_colours_are_rgb(tmp_path, name):
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 2] = 255
    data = cv2.imencode(".jpg", red, ENCODINGS[name])[1].tobytes()
    image = read_image(write(tmp_path, data))
    assert (image[..., 0] > 250).all() and (image[..., 1:] < 5).all()


def test_grey_is_repeated(tmp_path):
    data = cv2.imencode(".png", NOISE[..., 0])[1].tobytes()
    image = read_image(write(tmp_path, data))
    np.testing.assert_array_equal(image, np.repeat(NOISE[..., :1], 3, axis=-1))


def test_transparency_is_dropped(tmp_path):
    bgra = np.dstack([NOISE[..., ::-1], np.full((HEIGHT, WIDTH), 7, np.uint8)])
    image = read_image(write(tmp_path, cv2.imencode(".png", bgra)[1].tobytes()))
    np.testing.assert_array_equal(image, NOISE)


def test_sixteen_bits_keep_the_upper_eight(tmp_path):
    deep = np.random.default_rng(1).integers(0, 65536, (HEIGHT, WIDTH, 3), dtype=np.uint16)
    image = read_image(write(tmp_path, cv2.imencode(".png", deep[..., ::-1])[1].tobytes()))
    np.testing.assert_array_equal(image, deep >> 8)


def test_exif_orientation_is_ignored(tmp_path):
    plain = encode("baseline.jpg")
    turned = write(tmp_path, with_exif(plain, orientation=6, thumbnail=b""), "turned.jpg")
    # OpenCV itself does turn it, so the block that the test writes is a valid one.
    assert cv2.imread(str(turned)).shape == (WIDTH, HEIGHT, 3)
    np.testing.assert_array_equal(read_image(turned), read_image(write(tmp_path, plain)))


def test_bytes_after_the_end_do_no_harm(tmp_path):
    for name in ("baseline.jpg", "image.png", "lossless.webp"):
        data = encode(name)
        expected = read_image(write(tmp_path, data))
        np.testing.assert_array_equal(read_image(write(tmp_path, data + b"trailer")), expected)


@pytest.mark.parametrize("name", ENCODINGS)
def test_truncated_without_help_from_opencv(tmp_path, name, monkeypatch):
    """Old versions of OpenCV decode what there is and fill up with grey; here always."""
    data = encode(name)
    grey = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    monkeypatch.setattr(cv2, "imdecode", lambda *_: grey)
    np.testing.assert_array_equal(read_image(write(tmp_path, data)), grey)
    for kept in [*range(12, len(data) - 1, 97), len(data) - 2, len(data) - 1]:
        with pytest.raises(BrokenImage, match="truncated"):
            read_image(write(tmp_path, data[:kept]))


@pytest.mark.parametrize("name", ENCODINGS)
def test_truncated(tmp_path, name):
    data = encode(name)
    for kept in (1, 2, 3, 9, len(data) // 2, len(data) - 1):
        with pytest.raises(BrokenImage):
            read_image(write(tmp_path, data[:kept]))


@pytest.mark.parametrize("name", ["baseline.jpg", "progressive.jpg", "image.png"])
def test_tail_of_zeros(tmp_path, name):
    """What an interrupted download into a reserved file leaves."""
    data = encode(name)
    half = len(data) // 2
    with pytest.raises(BrokenImage, match="truncated"):
        read_image(write(tmp_path, data[:half] + bytes(len(data) - half)))


def test_end_of_a_thumbnail_does_not_count(tmp_path):
    whole = with_exif(encode("baseline.jpg"), orientation=1, thumbnail=encode("restarts.jpg"))
    assert read_image(write(tmp_path, whole)).shape == (HEIGHT, WIDTH, 3)
    assert whole[:-500].count(b"\xff\xd9") >= 1
    with pytest.raises(BrokenImage, match="truncated"):
        read_image(write(tmp_path, whole[:-500]))


def test_absent_empty_and_other_files(tmp_path):
    with pytest.raises(BrokenImage, match="absent.jpg.*No such file"):
        read_image(tmp_path / "absent.jpg")
    with pytest.raises(BrokenImage, match="cannot read"):
        read_image(tmp_path)
    with pytest.raises(BrokenImage, match="empty"):
        read_image(write(tmp_path, b""))
    with pytest.raises(BrokenImage, match="not an image") as error:
        read_image(write(tmp_path, b"<html>404 Not Found</html>", "page.jpg"))
    assert "page.jpg" in str(error.value) and "\n" not in str(error.value)


def test_damaged_png(tmp_path):
    data = bytearray(encode("image.png"))
    data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
    with pytest.raises(BrokenImage, match="damaged"):
        read_image(write(tmp_path, bytes(data)))


def test_image_size_check():
    check_image_size(NOISE, HEIGHT, WIDTH, "a.jpg")
    with pytest.raises(InputError, match=r"a\.jpg: the image is 56x40 .* say 57x40") as error:
        check_image_size(NOISE, HEIGHT, WIDTH + 1, "a.jpg")
    assert not isinstance(error.value, BrokenImage)  # wrong data must not pass as a lost image
    with pytest.raises(InputError, match="EXIF"):
        check_image_size(NOISE, WIDTH, HEIGHT, "a.jpg")


@pytest.mark.parametrize(
    "name", ["cmyk.jpg", "palette.png", "palette.bmp", "animated.png", "animated.webp"]
)
def test_odd_files_give_the_colours_of_their_first_frame(name):
    """Files that OpenCV cannot write, by Pillow 13.0: a red, a green and a blue third."""
    image = read_image(GOLDEN / "views" / "odd_files" / name)
    expected = np.repeat(np.array([[250, 0, 0], [0, 200, 40], [10, 20, 240]]), 16, axis=0)
    tolerance = 3 if name.endswith("jpg") else 0
    assert image.shape == (16, 48, 3) and image.dtype == np.uint8
    np.testing.assert_allclose(
        image.astype(int), np.broadcast_to(expected, (16, 48, 3)), rtol=0, atol=tolerance
    )


def test_a_gif_is_its_first_image_and_has_its_size_in_the_header(tmp_path):
    animation = cv2.Animation()
    animation.frames = [np.full((20, 30, 3), color, np.uint8) for color in (40, 200)]
    animation.durations = [100, 100]
    path = tmp_path / "a.gif"
    assert cv2.imwriteanimation(str(path), animation)
    image = read_image(path)
    assert image.shape == (20, 30, 3) and abs(image.mean() - 40) < 20  # the palette is dithered
    assert encoded_size(path.read_bytes()[:10]) == (20, 30)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BrokenImage):
        read_image(path)


def test_one_bit_files():
    image = read_image(GOLDEN / "views" / "odd_files" / "one_bit.png")
    assert set(np.unique(image)) <= {0, 255} and image.shape == (16, 48, 3)
