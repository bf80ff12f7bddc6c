"""Which class an image is of: that of the sub-folder in which it lies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

from ...errors import InputError

__all__ = ["labels_of"]


def labels_of(images: Sequence[PurePath], classes: Sequence[str]) -> list[int | None]:
    """The class of each image.

    A sub-folder is named by a class's index or by its name, in any case. If none is, and there are as many sub-folders
    as classes, they are the classes in the order of their names, as `fxlrp train` and torchvision's `ImageFolder` have
    them. Else there are no classes.

    Parameters
    ----------
    images : sequence of PurePath
        The images' paths in their folder.
    classes : sequence of str
        The names of the model's outputs.

    Returns
    -------
    list of int or None
        None where there is no such class: the model's own is explained.

    Raises
    ------
    InputError
        If a sub-folder is named as several classes are.
    """
    names = sorted({image.parts[0] for image in images if len(image.parts) > 1})
    found = {name: _class_of(name, classes) for name in names}
    if names and len(names) == len(classes) and not any(each is not None for each in found.values()):
        found = {name: index for index, name in enumerate(names)}
    return [found[image.parts[0]] if len(image.parts) > 1 else None for image in images]


def _class_of(name: str, classes: Sequence[str]) -> int | None:
    fitting = [index for index, each in enumerate(classes) if each.lower() == name.lower()]
    if len(fitting) > 1:
        raise InputError(
            f"the classes {' and '.join(map(str, fitting))} are both called {name}: name the folder by the index"
        )
    if fitting:
        return fitting[0]
    return int(name) if name.isdecimal() and int(name) < len(classes) else None
