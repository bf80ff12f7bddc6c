"""Boxes and outlines as COCO has them: one file of JSON for all images."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path, PurePath
from typing import Any

from ...errors import MaskError
from .annotation import Annotation, Object
from .shapes import Shape, box, counts_of, polygons, runs

__all__ = ["read_coco"]


def read_coco(path: Path, names: Collection[str], *, outlines: bool) -> dict[str, Annotation]:
    """Read a file.

    Parameters
    ----------
    path : Path
        The file of JSON, with "images", "annotations" and, for the names of objects, "categories".
    names : collection of str
        Of the images that are wanted, without folders and endings: of a large file, a few may be.
    outlines : bool
        Whether objects are their segmentations, polygons or run lengths; else they are their boxes.

    Returns
    -------
    dict of str to Annotation
        By the images' names of files.

    Raises
    ------
    MaskError
        If it is no such file, or has no segmentations where these are asked for.
    """
    try:
        found = json.loads(path.read_text())
        categories = {each["id"]: str(each["name"]).lower() for each in found.get("categories", ())}
        images = [each for each in found["images"] if PurePath(each["file_name"]).stem in names]
        objects: dict[Any, list[Object]] = {each["id"]: [] for each in images}
        for each in found["annotations"]:
            if each["image_id"] in objects:
                shape = _outline(each) if outlines else _box(each)
                objects[each["image_id"]].append(Object(categories.get(each.get("category_id"), ""), shape))
        return {each["file_name"]: _annotation(path, each, objects[each["id"]]) for each in images}
    except OSError as error:
        raise MaskError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"there is no {error}" if isinstance(error, KeyError) else str(error)
        raise MaskError(f"{path} is no file of COCO that can be used ({reason})") from error


def _annotation(path: Path, image: Mapping[str, Any], objects: list[Object]) -> Annotation:
    size = (int(image["width"]), int(image["height"])) if "width" in image and "height" in image else None
    return Annotation(f"{path}, {image['file_name']}", size, objects)


def _box(annotation: Mapping[str, Any]) -> Shape:
    left, top, width, height = map(float, annotation["bbox"])
    return box(left, top, left + width, top + height)


def _outline(annotation: Mapping[str, Any]) -> Shape:
    outline = annotation.get("segmentation")
    if not outline:
        raise ValueError(f"annotation {annotation.get('id')} has no segmentation: use its box")
    if not isinstance(outline, Mapping):
        return polygons(outline)
    counts, (height, width) = outline["counts"], outline["size"]
    return runs(counts_of(counts) if isinstance(counts, str) else counts, height, width)
