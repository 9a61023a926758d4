"""Layers as loops and sums in float64 NumPy, written from their definitions. NHWC, HWIO."""

from __future__ import annotations

import numpy as np


def conv2d(x, kernel, stride=1, bias=None):
    """Cross-correlation with zero padding of half the (odd) kernel on every side."""
    size = kernel.shape[0]
    pad = size // 2
    padded = np.pad(np.asarray(x, np.float64), ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    height, width = -(-x.shape[1] // stride), -(-x.shape[2] // stride)
    out = np.zeros((x.shape[0], height, width, kernel.shape[3]))
    for dy in range(size):
        for dx in range(size):
            rows = slice(dy, dy + stride * (height - 1) + 1, stride)
            columns = slice(dx, dx + stride * (width - 1) + 1, stride)
            out += padded[:, rows, columns] @ kernel[dy, dx].astype(np.float64)
    return out if bias is None else out + bias


def batch_norm(x, scale, bias, mean, var, epsilon=1e-5):
    """Normalises every channel by the given statistics."""
    return (x - mean) / np.sqrt(np.asarray(var, np.float64) + epsilon) * scale + bias


def group_norm(x, scale, bias, num_groups=32, epsilon=1e-5):
    """Normalises every image and group of neighbouring channels by its own mean and variance."""
    x = np.asarray(x, np.float64)
    out = np.empty_like(x)
    size = x.shape[-1] // num_groups
    for image in range(x.shape[0]):
        for group in range(num_groups):
            channels = slice(group * size, (group + 1) * size)
            values = x[image, :, :, channels]
            spread = np.sqrt(values.var() + epsilon)
            out[image, :, :, channels] = (values - values.mean()) / spread
    return out * scale + bias


def max_pool(x):
    """3x3 maxima, stride 2, padded by one pixel that never wins."""
    batch, height, width, channels = x.shape
    out = np.empty((batch, -(-height // 2), -(-width // 2), channels))
    for y in range(out.shape[1]):
        for column in range(out.shape[2]):
            rows = slice(max(2 * y - 1, 0), 2 * y + 2)
            columns = slice(max(2 * column - 1, 0), 2 * column + 2)
            out[:, y, column] = x[:, rows, columns].max(axis=(1, 2))
    return out


def bilinear(x, height, width):
    """Half-pixel centres, edges clamped, the two nearest pixels of each axis, pixel by pixel."""
    x = np.asarray(x, np.float64)
    out = np.empty((x.shape[0], height, width, x.shape[3]))

    def neighbours(index, in_size, out_size):
        position = max((index + 0.5) * in_size / out_size - 0.5, 0.0)
        low = min(int(position), in_size - 1)
        return low, min(low + 1, in_size - 1), position - low

    for row in range(height):
        y0, y1, dy = neighbours(row, x.shape[1], height)
        for column in range(width):
            x0, x1, dx = neighbours(column, x.shape[2], width)
            upper = (1 - dx) * x[:, y0, x0] + dx * x[:, y0, x1]
            lower = (1 - dx) * x[:, y1, x0] + dx * x[:, y1, x1]
            out[:, row, column] = (1 - dy) * upper + dy * lower
    return out


def with_coordinates(x):
    """Appends x, then y; they are float32 numbers whatever the features are."""
    batch, height, width, _ = x.shape
    out = np.concatenate([x, np.zeros((batch, height, width, 2))], axis=-1)
    for row in range(height):
        for column in range(width):
            out[:, row, column, -2:] = _coordinate(column, width), _coordinate(row, height)
    return out


def _coordinate(index, length):
    """From -1 to 1 by float32 steps that are counted from the nearer end."""
    if length == 1:
        return np.float32(-1)
    step = float(np.float32(2) / np.float32(length - 1))
    return np.float32(-1 + step * index if index < length // 2 else 1 - step * (length - 1 - index))


def relu(x):
    """The positive part."""
    return np.maximum(x, 0.0)


def sigmoid(x):
    """1 / (1 + exp(-x)) without overflow."""
    return np.exp(-np.logaddexp(0.0, -np.asarray(x, np.float64)))
