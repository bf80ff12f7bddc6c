"""The ISNet loss: classification, and what heatmaps hold outside of the foreground (appendix C)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..errors import MaskError, VariantError
from ..values import widened
from .module import ISNetOutput

__all__ = ["ISNetLoss", "ISNetLosses", "background_loss", "foreground_loss", "gwrp", "mask_at"]

Classification = Callable[..., Tensor]
"""``(logits, labels) -> scalar``, with labels of whatever kind it takes."""

Range = tuple[float, float]
Ranges = Mapping[str, Range | Sequence[Range]]


class ISNetLosses(NamedTuple):
    """The loss and its parts, each a scalar tensor.

    Attributes
    ----------
    total : Tensor
        ``(1 - p) classification + p heatmap`` (37): what to call `backward` on.
    classification : Tensor
        Of all samples.
    heatmap : Tensor
        ``w1 background + w2 foreground`` (38); over supervised layers, by global weighted ranked pooling.
    background, foreground : Tensor
        L1 and L2 of the input's heatmap.
    """

    total: Tensor
    classification: Tensor
    heatmap: Tensor
    background: Tensor
    foreground: Tensor


class ISNetLoss(nn.Module):
    """The ISNet loss, (37) and (38): a module without parameters.

    Parameters
    ----------
    p : float
        Weight of the heatmap loss against the classification loss, in [0, 1].
    d : float
        Decay of global weighted ranked pooling over a map's elements, in [0, 1]: 0 looks at the worst alone, 1 at all
        alike.
    w1, w2 : float
        Weights of the background and the foreground loss.
    ranges : mapping or None
        For each name in the heatmaps, the natural range (C1, C2) of a map's total absolute relevance, or one for each
        of its K maps: from `fxlrp.calibrate`. None: no foreground loss; then nothing keeps heatmaps from growing or
        vanishing.
    classification : callable
        ``(logits, labels) -> scalar``.
    activation : float
        E in ``s / (s + E)``, step 5 of the background loss.
    decay : float
        Decay of global weighted ranked pooling over the layers of deep supervision.

    Raises
    ------
    VariantError
        If `p`, `d` or `decay` lies outside of [0, 1], or a range is not ``0 < C1 <= C2``.
    """

    def __init__(
        self,
        p: float = 0.9,
        d: float = 0.9,
        w1: float = 1.0,
        w2: float = 1.0,
        ranges: Ranges | None = None,
        *,
        classification: Classification = nn.functional.cross_entropy,
        activation: float = 1.0,
        decay: float = 0.7,
    ) -> None:
        super().__init__()
        for name, value in (("p", p), ("d", d), ("decay", decay)):
            if not 0 <= value <= 1:
                raise VariantError(f"{name} is {value}: it lies between 0 and 1")
        self.p, self.d, self.w1, self.w2 = p, d, w1, w2
        self.classification, self.activation, self.decay = classification, activation, decay
        self.ranges = None if ranges is None else {name: _pairs(name, value) for name, value in ranges.items()}

    def forward(self, out: ISNetOutput, labels: object, masks: Tensor, has_mask: Tensor | None = None) -> ISNetLosses:
        """The loss of a batch.

        Parameters
        ----------
        out : ISNetOutput
            From an `fxlrp.ISNet`.
        labels : Tensor
            What `classification` takes: classes, shape (B,).
        masks : Tensor
            Foreground 1, background 0: shape (B, h, w) or (B, 1, h, w), bool or a number. A heatmap of another size
            gets the mask by adaptive average pooling, foreground wherever there is any.
        has_mask : Tensor or None
            Shape (B,), bool: which samples have a mask; the others are classified only. None: all. A sample without any
            foreground has nothing to compare its background with, and counts as one without a mask.

        Returns
        -------
        ISNetLosses
            Means over the samples.

        Raises
        ------
        MaskError
            If the masks do not fit the heatmaps.
        VariantError
            If there is no range for one of the heatmaps.
        """
        with torch.autocast(out.logits.device.type, enabled=False):
            classification = self.classification(widened(out.logits), labels)
            masks = _checked(masks, out.heatmaps["input"])
            counts = masks.flatten(1).any(1)
            if has_mask is not None:
                if has_mask.shape != counts.shape:
                    raise MaskError(
                        f"has_mask is one bool for each sample, {tuple(counts.shape)}: not {tuple(has_mask.shape)}"
                    )
                counts = counts & has_mask.to(counts)
            parts = {name: self._parts(name, widened(maps), masks, counts) for name, maps in out.heatmaps.items()}
            layers = torch.stack(
                [self.w1 * background + self.w2 * foreground for background, foreground in parts.values()]
            )
            heatmap = gwrp(layers, self.decay)
            total = (1 - self.p) * classification + self.p * heatmap
        return ISNetLosses(total, classification, heatmap, *parts["input"])

    def _parts(self, name: str, maps: Tensor, masks: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Background and foreground loss of one layer's maps, the mean over the samples that count."""
        maps = maps if maps.ndim > masks.ndim else maps.unsqueeze(1)  # K maps of each image
        foreground = mask_at(masks, maps.shape[3:]).to(maps.dtype).unsqueeze(1)
        background = background_loss(maps, foreground, self.d, self.activation)
        within = torch.zeros_like(background)
        if self.ranges is not None:
            if name not in self.ranges:
                raise VariantError(
                    f"ranges has none for the heatmap '{name}', but for {', '.join(self.ranges)}: calibrate this ISNet"
                )
            low, high = torch.tensor(self.ranges[name], dtype=maps.dtype, device=maps.device).unbind(1)
            if len(low) not in (1, maps.shape[1]):
                raise VariantError(f"ranges has {len(low)} pairs for '{name}', which has {maps.shape[1]} maps")
            within = foreground_loss(size_within(maps.abs(), foreground), low, high)
        number = counts.sum().clamp(min=1)
        # Not multiplied: what does not count is not to give a NaN either.
        mean = lambda losses: torch.where(counts, losses.mean(1), 0.0).sum() / number
        return mean(background), mean(within)


def gwrp(values: Tensor, d: float) -> Tensor:
    """Global weighted ranked pooling along the last dimension: the mean, weighted by d^i for the i-th largest.

    Parameters
    ----------
    values : Tensor
        Shape (..., n).
    d : float
        0 is the maximum, 1 the mean.

    Returns
    -------
    Tensor
        Shape (...).
    """
    n = values.shape[-1]
    reach = 1 if d == 0 else n
    if 0 < d < 1:
        # Weights below the rounding error of the first are nothing.
        reach = min(n, math.ceil(math.log(torch.finfo(values.dtype).eps) / math.log(d)) + 1)
    ranked = values.topk(reach, -1).values
    weights = torch.pow(d, torch.arange(reach, dtype=values.dtype, device=values.device))
    return (ranked * weights).sum(-1) / weights.sum()


def size_within(size: Tensor, foreground: Tensor) -> Tensor:
    """The foreground's sum of absolute relevance (B, K, C, ...), shape (B, K)."""
    return (size.sum(2, keepdim=True) * foreground).flatten(2).sum(2)


def background_loss(maps: Tensor, foreground: Tensor, d: float, activation: float = 1.0) -> Tensor:
    """L1 (appendix C, steps 1-6): the background's relevance, in units of the foreground's mean.

    Parameters
    ----------
    maps : Tensor
        Relevance, shape (B, K, C, ...).
    foreground : Tensor
        1 or 0, shape (B, 1, 1, ...).
    d : float
        Of `gwrp`.
    activation : float
        E: scores ``s / (s + E)``, of which ``-ln(1 - .)`` is ``ln(1 + s / E)``.

    Returns
    -------
    Tensor
        For each sample and map, the mean over channels, shape (B, K).
    """
    size = maps.abs()
    number = (foreground.flatten(2).sum(2) * size.shape[2]).clamp(min=1)
    # A foreground without relevance: what is divided by it stays finite, and pulls no longer.
    least = size.detach().flatten(2).mean(2) * torch.finfo(size.dtype).eps + torch.finfo(size.dtype).tiny
    scale = torch.maximum(size_within(size, foreground) / number, least).unsqueeze(2)
    scores = gwrp((size * (1 - foreground)).flatten(3), d) / scale
    return torch.log1p(scores / activation).mean(2)


def foreground_loss(total: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """L2 (39): zero within the natural range of a map's absolute relevance, quadratic outside, linear far above.

    Parameters
    ----------
    total : Tensor
        The foreground's absolute relevance, summed: shape (B, K).
    low, high : Tensor
        C1 and C2, shape (K,) or (1,).

    Returns
    -------
    Tensor
        Shape (B, K).
    """
    below = (low - total).clamp(min=0) / low
    above = (total - high).clamp(min=0)
    far = above > low
    # The quadratic branch is not to overflow where the linear one is taken.
    near = torch.where(far, torch.zeros_like(above), above) / low
    return below.square() + torch.where(far, 1 + above - low, near.square())


def mask_at(masks: Tensor, size: Sequence[int]) -> Tensor:
    """Masks (B, 1, ...) at another size: foreground wherever a cell holds any of it."""
    if tuple(masks.shape[2:]) == tuple(size):
        return masks
    return _POOLS[len(size)](masks.float(), list(size)) > 0


_POOLS: dict[int, Callable[..., Tensor]] = {
    1: nn.functional.adaptive_avg_pool1d,
    2: nn.functional.adaptive_avg_pool2d,
    3: nn.functional.adaptive_avg_pool3d,
}


def _checked(masks: object, maps: Tensor) -> Tensor:
    """The masks as bool, (B, 1, ...)."""
    if not isinstance(masks, Tensor):
        raise MaskError(f"masks are a tensor, not a {type(masks).__name__}")
    if masks.ndim == 0 or masks.shape[0] != maps.shape[0]:
        raise MaskError(f"masks of shape {tuple(masks.shape)} do not fit a batch of {maps.shape[0]} images")
    # With a dimension for the channel, or without; maps have the batch, perhaps K, channels and the same dimensions.
    readings = [masks] if masks.ndim > 1 and masks.shape[1] == 1 else []
    readings.append(masks.unsqueeze(1))
    readings = [mask for mask in readings if maps.ndim - mask.ndim in (0, 1) and mask.ndim > 2]
    if not readings:
        raise MaskError(
            f"masks of shape {tuple(masks.shape)} do not fit heatmaps of shape {tuple(maps.shape)}: give one mask for "
            "each image, (B, h, w) or (B, 1, h, w)"
        )
    exact = [mask for mask in readings if mask.shape[2:] == maps.shape[-(mask.ndim - 2) :]]
    return [*exact, *readings][0].to(maps.device) > 0


def _pairs(name: str, value: Range | Sequence[Range]) -> list[Range]:
    pairs = torch.as_tensor(value, dtype=torch.float64).reshape(-1, 2)
    found = [(float(low), float(high)) for low, high in pairs]
    for low, high in found:
        if not 0 < low <= high < math.inf:
            raise VariantError(f"the range of '{name}' is ({low}, {high}): it must be 0 < C1 <= C2, finite")
    return found
