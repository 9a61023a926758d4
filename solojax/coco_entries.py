"""What is read alike from an entry of a COCO json wherever one is read: data sets and results."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlparse


def text_field(entry: Mapping, key: str) -> str:
    """entry[key], a text that is not empty; ValueError with what to do otherwise."""
    if key not in entry:
        raise ValueError(f'has no "{key}"; add it')
    value = entry[key]
    if not isinstance(value, str) or not value:
        raise ValueError(f'"{key}" is {value!r}; it has to be a text that is not empty')
    return value


def image_file_name(entry: Mapping) -> str:
    """The name of an image's file below the image folder; ValueError where there is none.

    LVIS gives nothing but the URL that the file came from: the last two parts of "coco_url"
    (train2017/000000391895.jpg) stand in for "file_name".
    """
    if "file_name" not in entry and "coco_url" in entry:
        return "/".join(urlparse(text_field(entry, "coco_url")).path.split("/")[-2:])
    return text_field(entry, "file_name")
