"""The losses on coarse masks as loops in float64, written from their formulas."""

from __future__ import annotations

import numpy as np
from helpers.plain_layers import sigmoid


def neighbors(y, x, dilation=2):
    """The eight places around (y, x), row by row."""
    steps = (-dilation, 0, dilation)
    return [(y + a, x + b) for a in steps for b in steps if (a, b) != (0, 0)]


def lab_of(rgb):
    """CIE Lab of (..., 3) sRGB values in [0, 255]."""
    c = np.asarray(rgb, np.float64) / 255
    linear = np.where(c > 0.04045, ((c + 0.055) / 1.055) ** 2.4, c / 12.92)
    to_xyz = [
        [0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169],
        [0.019334, 0.119193, 0.950227],
    ]  # fmt: skip
    t = linear @ np.array(to_xyz).T / [0.95047, 1.0, 1.08883]
    x, y, z = np.moveaxis(np.where(t > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116), -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def similarities(lab, valid, dilation=2):
    """(8, h, w) similarities of every pixel to its neighbours, one pixel at a time."""
    height, width = valid.shape
    out = np.zeros((8, height, width))
    for y, x in np.ndindex(height, width):
        for k, (b, a) in enumerate(neighbors(y, x, dilation)):
            if 0 <= b < height and 0 <= a < width and valid[b, a]:
                out[k, y, x] = np.exp(-np.linalg.norm(lab[y, x] - lab[b, a]) / 2)
    return out


def image_similarities(image, image_size, original_size, dilation=2, bottom=10):
    """The same of one image (H, W, 3) uint8 at 1/4 of its canvas."""
    height, width = image.shape[0] // 4, image.shape[1] // 4
    cut = int(bottom * image_size[0] / original_size[0])
    small, valid = np.zeros((height, width, 3)), np.zeros((height, width), bool)
    for y, x in np.ndindex(height, width):
        block = image[4 * y : 4 * y + 4, 4 * x : 4 * x + 4].astype(np.float64)
        small[y, x] = np.floor(block.mean(axis=(0, 1)))
        valid[y, x] = 4 * y + 2 < image_size[0] - cut and 4 * x + 2 < image_size[1]
    return similarities(lab_of(small), valid, dilation)


def pairwise(logits, similarity, coarse, dilation=2, threshold=0.3):
    """Sum of -log P(same side) over the similar neighbours of the box's pixels, and their number.

    The probabilities are multiplied and added as they are, so logits must be moderate.
    """
    p = sigmoid(np.asarray(logits, np.float64))
    ys, xs = np.flatnonzero(coarse.any(axis=1)), np.flatnonzero(coarse.any(axis=0))
    total, count = 0.0, 0
    for y in ys:
        for x in xs:
            for k, (b, a) in enumerate(neighbors(y, x, dilation)):
                if similarity[k, y, x] >= threshold:
                    total -= np.log(p[y, x] * p[b, a] + (1 - p[y, x]) * (1 - p[b, a]))
                    count += 1
    return total, count


def projection(p, coarse, reduce, epsilon=1e-5):
    """Dice of the shadows on the x and on the y axis, added up."""
    total = 0.0
    for axis in (0, 1):
        a, b = reduce(np.asarray(p, np.float64), axis=axis), reduce(coarse * 1.0, axis=axis)
        total += 1 - 2 * np.sum(a * b) / (np.sum(a * a) + np.sum(b * b) + epsilon)
    return total


def one_minus_cosine(a, b):
    """Equation 6.7."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return 1 - a @ b / np.sqrt((a @ a) * (b @ b))
