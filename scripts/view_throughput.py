"""How fast views are made: on the device, beside a torchvision-style loop on one core.

    python scripts/view_throughput.py --images train_folder

Contrastive pre-training needs two augmented views of every image. The host's part of this package
is decoding, cropping, resizing and mirroring; colours, blur and normalisation are the device's.
Beside both stands a plain loop in one process with Pillow and NumPy, written here, that does what
torchvision's transforms do image by image. Without --images, one made-up JPEG of 375 x 500 pixels
is read again and again. The plain loop needs Pillow (`pip install pillow`), which the package does
not; where it is not installed, the loop is left out.

Every phase is timed by processor time, so that other programs matter little, and by the clock. On a
CPU "images/s per core" is images by processor seconds; on an accelerator read the clock's column.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from solojax.data.image_folder import ImageList, list_folder
from solojax.data.random_bits import philox
from solojax.data.random_crop import DRAWS, random_crop_box
from solojax.data.two_views import TwoViewRows
from solojax.ops.augment_views import augment_views

SCALE, RATIO = (0.2, 1.0), (3 / 4, 4 / 3)
MEAN, STD = np.float32([123.675, 116.28, 103.53]), np.float32([58.395, 57.12, 57.375])
SETTINGS = {
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.4,
    "hue": 0.1,
    "jitter_probability": 0.8,
    "grayscale_probability": 0.2,
    "blur_probability": 0.5,
    "blur_sigma": (0.1, 2.0),
    "pixel_mean": tuple(MEAN.tolist()),
    "pixel_std": tuple(STD.tolist()),
}


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds an image (two views): of the processor and by the clock."""

    cpu: float
    wall: float


def main(argv: list[str] | None = None) -> None:
    """Measures and prints."""
    args = _parse(argv)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        images = list_folder(args.images or _made_up_images(Path(folder)))
        print_table(measure(images, args), args)


def measure(images: ImageList, args: argparse.Namespace) -> dict[str, Timing]:
    """Time of every phase by its name."""
    timings = {
        "host: decode": time_rows(lambda row: images.read_image(row % len(images)), args),
        "host: decode, crop, resize, flip": time_host(images, args),
        "device: colours, blur, normalise": time_device(args),
    }
    if importlib.util.find_spec("PIL") is None:
        return timings
    plain = PlainViews(images, args.size)
    timings["plain loop: colours, blur, normalise"] = time_rows(plain.colors_of_both, args)
    timings["plain loop: everything"] = time_rows(plain, args)
    return timings


def print_table(timings: dict[str, Timing], args: argparse.Namespace) -> None:
    """A line for each phase, and how the device's part compares."""
    print(f"two {args.size} x {args.size} views an image; device: {jax.devices()[0].device_kind}")
    print(f"{'phase':40} {'ms/image':>9} {'images/s per core':>18} {'images/s (clock)':>17}")
    for name, timing in timings.items():
        print(f"{name:40} {1e3 * timing.cpu:9.2f} {1 / timing.cpu:18.1f} {1 / timing.wall:17.1f}")
    if "plain loop: everything" not in timings:
        print("no plain loop beside it: Pillow is not installed")
        return
    device = timings["device: colours, blur, normalise"].cpu
    plain = timings["plain loop: colours, blur, normalise"].cpu
    print(f"colours, blur, normalise: the plain loop takes {plain / device:.2f} times the device's")


def time_rows(read: Callable[[int], object], args: argparse.Namespace) -> Timing:
    """The median over passes of `args.rows` calls each; one call before that does not count."""
    read(0)
    return _median(
        [_timed(lambda: [read(row) for row in range(args.rows)]) for _ in range(3)], args.rows
    )


def time_host(images: ImageList, args: argparse.Namespace) -> Timing:
    """Of the package's row reader."""
    reader, canvas = TwoViewRows(images, SCALE, RATIO), (args.size, args.size)
    return time_rows(lambda row: reader(row % len(images), 0, False, canvas, row), args)


def time_device(args: argparse.Namespace) -> Timing:
    """Of the jitted augmentation, compiled beforehand, its input on the device already."""
    shape = (args.batch, 2, args.size, args.size, 3)
    views = jax.device_put(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    augment = jax.jit(lambda views, seeds: augment_views(views, seeds, **SETTINGS))
    seeds = [jnp.arange(args.batch, dtype=jnp.uint32) + step for step in range(4)]
    jax.block_until_ready(augment(views, seeds[0]))
    passes = [_timed(lambda s=s: jax.block_until_ready(augment(views, s))) for s in seeds[1:]]
    return _median(passes, args.batch)


class PlainViews:
    """Two views of an image as torchvision's transforms make them on Pillow images."""

    def __init__(self, images: ImageList, size: int):
        from PIL import Image, ImageEnhance, ImageFilter, ImageOps

        self._pil = (Image, ImageEnhance, ImageFilter, ImageOps)
        self._images, self._size = images, size
        self._rng = np.random.default_rng(0)
        self._view = None

    def __call__(self, row: int) -> np.ndarray:
        """Decodes, and makes both views: (2, H, W, 3) float32."""
        image_class = self._pil[0]
        data = Path(self._images.image_path(row % len(self._images))).read_bytes()
        image = image_class.open(io.BytesIO(data)).convert("RGB")
        return np.stack([self._colors(self._crop(image, 2 * row + view)) for view in range(2)])

    def colors_of_both(self, row: int) -> np.ndarray:
        """The part that is the device's in this package, on a crop made once."""
        if self._view is None:
            pixels = np.random.default_rng(0).integers(0, 256, (self._size,) * 2 + (3,), np.uint8)
            self._view = self._pil[0].fromarray(pixels)
        return np.stack([self._colors(self._view) for _ in range(2)])

    def _crop(self, image, seed: int):
        image_class, _, _, image_ops = self._pil
        bits = philox(seed).random_raw(DRAWS)
        top, left, height, width = random_crop_box(
            image.height, image.width, bits, scale=SCALE, ratio=RATIO
        )
        crop = image.crop((left, top, left + width, top + height))
        crop = crop.resize((self._size, self._size), image_class.Resampling.BILINEAR)
        return image_ops.mirror(crop) if self._rng.random() < 0.5 else crop

    def _colors(self, image) -> np.ndarray:
        _, enhance, image_filter, image_ops = self._pil
        draw = self._rng.random
        if draw() < SETTINGS["jitter_probability"]:
            operations = (
                lambda i: enhance.Brightness(i).enhance(0.6 + 0.8 * draw()),
                lambda i: enhance.Contrast(i).enhance(0.6 + 0.8 * draw()),
                lambda i: enhance.Color(i).enhance(0.6 + 0.8 * draw()),
                lambda i: self._turn_hue(i, 0.2 * draw() - 0.1),
            )
            for index in self._rng.permutation(4):
                image = operations[index](image)
        if draw() < SETTINGS["grayscale_probability"]:
            image = image_ops.grayscale(image).convert("RGB")
        if draw() < SETTINGS["blur_probability"]:
            image = image.filter(image_filter.GaussianBlur(0.1 + 1.9 * draw()))
        return (np.asarray(image, np.float32) - MEAN) / STD

    def _turn_hue(self, image, turn: float):
        hue, saturation, value = image.convert("HSV").split()
        turned = (np.asarray(hue, np.int16) + int(255 * turn)) % 256
        hue = self._pil[0].fromarray(turned.astype(np.uint8))
        return self._pil[0].merge("HSV", (hue, saturation, value)).convert("RGB")


def _timed(work: Callable[[], object]) -> Timing:
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return Timing(time.process_time() - cpu, time.perf_counter() - wall)


def _median(passes: list[Timing], images: int) -> Timing:
    return Timing(
        statistics.median(p.cpu for p in passes) / images,
        statistics.median(p.wall for p in passes) / images,
    )


def _made_up_images(folder: Path) -> Path:
    """A folder with one smooth picture with some noise, whose file is as large as a photo's."""
    rng = np.random.default_rng(0)
    smooth = cv2.resize(rng.uniform(0, 255, (9, 12, 3)), (500, 375), interpolation=cv2.INTER_CUBIC)
    picture = np.clip(smooth + rng.normal(0, 8, smooth.shape), 0, 255).astype(np.uint8)
    cv2.imwrite(str(folder / "picture.jpg"), picture, [cv2.IMWRITE_JPEG_QUALITY, 90])
    return folder


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", help="folder of images, flat or of class folders")
    parser.add_argument("--size", type=int, default=224, help="side of the views in pixels")
    parser.add_argument("--batch", type=int, default=32, help="images a call of the device's part")
    parser.add_argument("--rows", type=int, default=32, help="images a pass of the host's phases")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
