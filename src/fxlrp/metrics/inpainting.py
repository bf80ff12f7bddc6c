"""Inpainting: what is left out of an image, filled from what surrounds it (Telea 2004, by OpenCV)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import MissingExtraError

__all__ = ["RADIUS", "inpainted", "opencv"]

RADIUS = 3
"""How far, in pixels, known pixels count for an unknown one."""

WHITE = 255.0
"""What `bounds` are scaled to: OpenCV's method adds a slope of about one grey level of 8 bits, whatever the scale."""


def opencv() -> ModuleType:
    """OpenCV.

    Raises
    ------
    MissingExtraError
        If it is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise MissingExtraError("fill='inpaint'", "opencv-python-headless", "evaluate") from error
    return cv2


def inpainted(x: Tensor, masks: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """An image with what is masked filled from around it, channel by channel, in single precision without rounding.

    The fill does not depend on what it replaces. Where all is masked, there is nothing to fill from: it becomes grey.

    Parameters
    ----------
    x : Tensor
        Shape (C, H, W).
    masks : Tensor
        Shape (n, 1, H, W), bool.
    low, high : Tensor
        Black and white, shape (1, 1, 1) or (C, 1, 1); what is filled lies between.

    Returns
    -------
    Tensor
        Shape (n, C, H, W), of x's dtype and device.
    """
    width = high - low
    shades = (x - low) / width.masked_fill(width == 0, 1)
    planes = (torch.where(masks, 0.5, shades) * WHITE).float().cpu().contiguous().numpy()
    holes = masks[:, 0].to("cpu", torch.uint8).contiguous().numpy()
    places = [(i, channel) for i, hole in enumerate(holes) if 0 < hole.sum() < hole.size for channel in range(len(x))]
    cv2: Any = opencv()
    paint = lambda place: cv2.inpaint(planes[place], holes[place[0]], RADIUS, cv2.INPAINT_TELEA)
    # OpenCV lets go of the interpreter's lock while it works.
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        for place, plane in zip(places, threads.map(paint, places), strict=True):
            planes[place] = np.clip(plane, 0, WHITE)
    return torch.where(masks, torch.from_numpy(planes).to(x) / WHITE * width + low, x)
