"""Boxes as Pascal VOC has them: a file of XML for each image."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from ...errors import MaskError
from .annotation import Annotation, Object
from .shapes import box

__all__ = ["read_voc"]


def read_voc(path: Path) -> Annotation:
    """Read a file.

    Corners are pixels, of which the first is 1, and both are within the box (Everingham et al. 2010).

    Raises
    ------
    MaskError
        If it is no such file.
    """
    try:
        root = ElementTree.parse(path).getroot()
        objects = [_object(each) for each in root.iter("object")]
        width, height = (int(float(root.findtext(f"size/{side}") or 0)) for side in ("width", "height"))
    except OSError as error:
        raise MaskError(f"cannot read {path}: {error.strerror}") from error
    except (ElementTree.ParseError, ValueError) as error:
        raise MaskError(f"{path} is no file of Pascal VOC ({error})") from error
    if root.tag != "annotation":
        raise MaskError(f"{path} is no file of Pascal VOC (it begins with <{root.tag}>, and is to with <annotation>)")
    # Some files say 0 x 0, where the size was not known.
    return Annotation(str(path), (width, height) if width and height else None, objects)


def _object(element: ElementTree.Element) -> Object:
    ends = [element.findtext(f"bndbox/{name}") for name in ("xmin", "ymin", "xmax", "ymax")]
    if None in ends:
        raise ValueError("an object has no bndbox with xmin, ymin, xmax, ymax")
    left, top, right, bottom = (float(end or "") for end in ends)
    return Object((element.findtext("name") or "").strip().lower(), box(left - 1, top - 1, right, bottom))
