"""Reads image files as what a viewer shows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..errors import InputError, MaskError

if TYPE_CHECKING:
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

__all__ = ["read_image", "read_mask"]

WHITES = (2**8 - 1, 2**12 - 1, 2**16 - 1)
"""What deep grey may count up to, whatever its file could hold: X-rays have 12 bits, and lie in files of 16."""

BLACK = 1 / 16
"""What stays below this share of white is called black."""

ORIENTATION, PHOTOMETRIC, SAMPLE_FORMAT = 274, 262, 339
"""Numbers of tags, of EXIF and TIFF."""

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image of each EXIF orientation upright."""


def read_image(path: str | Path) -> Image.Image:
    """Read an image file as what a viewer shows.

    That is: upright, as EXIF says; of an animation the first frame; what is transparent over white; and grey of 16 or
    32 bits, or of floating-point numbers, from black to white. White is what the file can hold. Where all would then
    be black, it is the largest number of 12 or of 8 bits, whichever the pixels fit in: X-rays of 12 bits lie in files
    of 16. Of floating-point numbers white is 1, or, where some are larger, the largest number of 8, 12 or 16 bits.
    Colour profiles are not applied, as they are not when models are trained.

    Parameters
    ----------
    path : str or Path
        Any format that Pillow reads.

    Returns
    -------
    PIL.Image.Image
        RGB.

    Raises
    ------
    InputError
        If there is no such file, it is broken or not an image, or its numbers have no brightness.
    """
    image, _ = _read(path, InputError, 255)
    if image.mode == "F":
        image = Image.fromarray((255 * np.array(image) + 0.5).astype(np.uint8))
    return image.convert("RGB")


def read_mask(path: str | Path) -> Tensor:
    """Read a mask, as it is shown: foreground where it is half as bright as white, or brighter.

    One without anything so bright holds labels, as one with a palette does: foreground is what is not 0, or black.
    What is transparent is background. A mask is turned as its own EXIF says; one without EXIF belongs to the image as
    `read_image` gives it, upright.

    Parameters
    ----------
    path : str or Path
        As of `read_image`, and read like it.

    Returns
    -------
    Tensor
        (h, w), bool.

    Raises
    ------
    MaskError
        If it cannot be read.
    """
    image, mode = _read(path, MaskError, 0)
    values = np.array(image)
    bright = values if image.mode == "F" else np.array(image.convert("L")) / 255
    if mode in ("P", "PA") or bright.max() < 0.5:
        return torch.from_numpy(values.reshape(*bright.shape, -1).any(-1))
    return torch.from_numpy(bright >= 0.5)


def _read(path: str | Path, kind: type[Exception], backdrop: int) -> tuple[Image.Image, str]:
    """An image upright, in RGB or (deep grey) "F" from 0 to 1, and the mode that its file has."""
    try:
        # By its name, Pillow maps a file into memory, and garbles a TIFF that is to be turned by 90 degrees.
        with Path(path).open("rb") as file, Image.open(file) as image:
            image.load()
            mode, turn = image.mode, _turn(image)
            shown = _grey(image, backdrop) if mode.startswith(("I", "F")) else _flat(image, backdrop)
    except UnidentifiedImageError as error:
        raise kind(f"{path} is not an image that can be read") from error
    except Image.DecompressionBombError as error:
        raise kind(f"{path} has more pixels than are read at once ({error}): make it smaller") from error
    except _NoBrightness as error:
        raise kind(f"{path} {error}") from error
    # Of broken files, Pillow raises whatever its parsers happen to.
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:
            raise kind(f"cannot read {path}: {error.strerror}") from error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise kind(f"{path} is not an image that can be read: it is broken ({reason})") from error
    return (shown if turn is None else shown.transpose(turn)), mode


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return UPRIGHT.get(image.getexif().get(ORIENTATION, 1))
    # A viewer shows an image whose EXIF is broken as it lies.
    except Exception:
        return None


class _NoBrightness(Exception):
    """There is no telling which numbers of an image are black and white."""


def _grey(image: Image.Image, backdrop: int) -> Image.Image:
    """Deep grey as "F", from 0 to 1."""
    tags: ImageFileDirectory_v2 | dict[int, tuple[int, ...]] = getattr(image, "tag_v2", {})
    values = np.array(image)
    if image.mode == "I" and tags and tags.get(SAMPLE_FORMAT, (1,))[0] == 1:
        values = values.view(np.uint32)  # Pillow has no mode for it.
    shown = values / _white(values)
    if tags.get(PHOTOMETRIC) == 0:  # White is zero, which Pillow knows of 8 bits only.
        shown = 1 - shown
    if "transparency" in image.info:
        shown[values == image.info["transparency"]] = backdrop / 255
    return Image.fromarray(shown.astype(np.float32))


def _white(values: np.ndarray) -> float:
    """The number that is white."""
    low, high = values.min(), values.max()
    if not np.isfinite(values).all():
        raise _NoBrightness("holds pixels that are not finite (NaN or infinite): replace them")
    whites = (1, *WHITES) if values.dtype.kind == "f" else (*WHITES, np.iinfo(values.dtype).max)
    white = next((white for white in whites if high <= white), None)
    if low < 0 or white is None or (high > whites[0] and high < BLACK * white):
        raise _NoBrightness(
            f"holds numbers from {low:g} to {high:g}, and there is no telling which are black and white: save it with "
            "8 or 16 bits, or with floating-point numbers in [0, 1]"
        )
    return white


def _flat(image: Image.Image, backdrop: int) -> Image.Image:
    """Anything else in RGB, before a backdrop of that brightness."""
    if image.mode == "LAB":
        from PIL import ImageCms

        lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, rgb, outputMode="RGB")
        assert converted is not None
        return converted
    if not image.has_transparency_data:
        return image.convert("RGB")
    behind = Image.new("RGBA", image.size, (backdrop, backdrop, backdrop))
    return Image.alpha_composite(behind, image.convert("RGBA")).convert("RGB")
