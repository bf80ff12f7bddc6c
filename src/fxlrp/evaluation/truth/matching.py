"""Which mask or annotation belongs to which image: the one of the same name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import TypeVar

from ...errors import MaskError
from ...io.folders import IMAGES, files_in
from .annotation import MaskFile, Truth
from .coco import read_coco
from .voc import read_voc

__all__ = ["boxes_of", "masks_of"]

Known = TypeVar("Known")


def masks_of(images: Sequence[PurePath], given: Path) -> dict[PurePath, Truth]:
    """The masks of images, from a folder of mask images, or a COCO file's segmentations.

    Parameters
    ----------
    images : sequence of PurePath
        The images' paths in their folder.
    given : Path
        The folder, or the file.

    Returns
    -------
    dict of PurePath to Truth
        Of the images that have one.

    Raises
    ------
    MaskError
        If something cannot be read, or nothing belongs to an image, or it is not clear what belongs to one.
    """
    if given.is_file():
        return _matched(images, read_coco(given, _names(images), outlines=True).items(), given)
    files = files_in(given, IMAGES, MaskError)
    return _matched(images, ((path.relative_to(given), MaskFile(path)) for path in files), given)


def boxes_of(images: Sequence[PurePath], given: Path) -> dict[PurePath, Truth]:
    """The same, of boxes: a folder of Pascal VOC files, or a COCO file."""
    if given.is_file():
        return _matched(images, read_coco(given, _names(images), outlines=False).items(), given)
    names = _names(images)
    files = [path for path in files_in(given, {".xml"}, MaskError) if path.stem in names]
    return _matched(images, ((path.relative_to(given), read_voc(path)) for path in files), given)


def _names(images: Sequence[PurePath]) -> set[str]:
    return {image.stem for image in images}


def _matched(
    images: Sequence[PurePath], found: Iterable[tuple[str | PurePath, Truth]], source: Path
) -> dict[PurePath, Truth]:
    """By the path without its ending; else by the name alone, if no other has it."""
    known: dict[PurePath, Truth] = {}
    for name, truth in found:
        stem = PurePath(name).with_suffix("")
        if stem in known:
            raise MaskError(f"{source} has two of the same image, {stem}: keep one")
        known[stem] = truth
    matched = {image: known[image.with_suffix("")] for image in images if image.with_suffix("") in known}
    if not matched:
        matched = _by_name(images, known, source)
    if not matched:
        example = images[0].with_suffix("")
        raise MaskError(f"{source} has nothing of any of the {len(images)} images: of one, its name would be {example}")
    return matched


def _by_name(images: Sequence[PurePath], known: Mapping[PurePath, Truth], source: Path) -> dict[PurePath, Truth]:
    """By the name without the folders, which the one side may have, and the other not."""
    here, there = _named({each: each for each in images}), _named(known)
    shared = [name for name in here if name in there]
    for name in shared:
        if len(here[name]) > 1 or len(there[name]) > 1:
            raise MaskError(
                f"several images, or several masks or annotations in {source}, are called {name}: put them in the same "
                "folders on both sides"
            )
    return {here[name][0]: there[name][0] for name in shared}


def _named(paths: Mapping[PurePath, Known]) -> dict[str, list[Known]]:
    found: dict[str, list[Known]] = {}
    for path, value in paths.items():
        found.setdefault(path.with_suffix("").name, []).append(value)
    return found
