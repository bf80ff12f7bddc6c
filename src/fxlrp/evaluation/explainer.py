"""fxlrp as what other libraries call to explain: arrays in, arrays out."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from zennit.core import Composite

from ..conversion import convert
from ..given import check_model
from ..metrics.pooling import Pool, pooled
from ..twin import Twin

__all__ = ["explainer"]

TWINS = 4
"""How many models have a twin at a time: Quantus makes copies."""


def explainer(
    model: nn.Module, composite: Composite | str | None = None, *, pool: Pool | None = "sum", **options: Any
) -> Callable[..., np.ndarray]:
    """A function that explains as Quantus asks for: ``metric(model=model, ..., explain_func=fxlrp.explainer(model))``.

    A twin of each model that it is called with is kept, and shares its weights: what is written into these, as Quantus'
    parameter randomization does, is what is explained.

    Parameters
    ----------
    model : nn.Module
        The model, which is converted at the first call.
    composite : zennit.core.Composite, str or None
        As of `fxlrp.convert`.
    pool : str, callable or None
        How the channels become one, see `fxlrp.metrics.POOLS`. None: they stay.
    **options
        As of `fxlrp.convert`.

    Returns
    -------
    callable
        ``(model, inputs, targets, **ignored) -> array``: of images (B, C, H, W) and classes (B,), heatmaps (B, 1, H, W)
        (or (B, C, H, W), without a pool), float32 or as the inputs.

    Examples
    --------
    >>> import numpy, torchvision, fxlrp
    >>> model = torchvision.models.squeezenet1_1(num_classes=5).eval()
    >>> explain = fxlrp.explainer(model, "epsilon_plus")
    >>> explain(model, numpy.zeros((2, 3, 32, 32), "float32"), numpy.array([0, 4])).shape
    (2, 1, 32, 32)
    """
    check_model(model, exported=False)
    twins: OrderedDict[int, tuple[nn.Module, Twin]] = OrderedDict()

    def twin_of(asked: nn.Module) -> Twin:
        known = twins.pop(id(asked), None)
        twins[id(asked)] = known or (asked, convert(asked, composite, trainable=True, **options))
        while len(twins) > TWINS:
            twins.popitem(last=False)
        return twins[id(asked)][1]

    def explain(model: nn.Module, inputs: Any, targets: Any = None, **_: Any) -> np.ndarray:
        like = next(model.parameters(), torch.empty(0))
        x = torch.as_tensor(inputs, dtype=like.dtype, device=like.device)
        classes = None if targets is None else torch.as_tensor(targets, device=like.device).long().reshape(-1)
        with torch.no_grad():
            relevance = twin_of(model)(x, classes).relevance
        found = relevance if pool is None else pooled(relevance, pool).unsqueeze(1)
        return found.cpu().numpy()

    twin_of(model)
    return explain
