"""Draws blocks of layers, and rows of blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import hypothesis.strategies as st
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.conv import _ConvNd

from .layers import Layers, in_sequence, shape_after, sized
from .modules import (
    Concat,
    Functional,
    Gate,
    LayerScale,
    Overwritten,
    PadsItself,
    Residual,
    Reused,
    Shape,
    Split,
    channels,
    repeat_channels,
    shuffle,
)

__all__ = ["Blocks"]

GATES = (nn.Sigmoid, nn.Hardsigmoid, lambda: Functional(torch.sigmoid))

# Letters as of `Layers.layers`.
UNITS = ("c", "cr", "cnr", "nrc", "nc", "crn", "rnc", "cnnr", "cc", "cd")
HEADS = ("c", "nc", "crc", "crnc", "cnrdc", "ncrndc", "rc")
AFTER_SUM = ("", "n", "nrc")

Block = Callable[[Shape], nn.Module]


@dataclass
class Blocks(Layers):
    """Draws blocks that fit a shape (without the batch), from what a network may hold."""

    depth: int = 0

    def row(self, blocks: list[Block], shape: Shape, most: int) -> list[nn.Module]:
        """Up to so many blocks, one after the other."""
        row: list[nn.Module] = []
        for _ in range(self.pick(*range(1, most + 1))):
            row.append(self.pick(*blocks)(shape))
            shape = shape_after(row[-1], shape)
        return row

    # Blocks that keep the shape

    def keeping(self) -> list[Block]:
        blocks = [self.unit, self.norm, self.activation, self.gate, self.context, self.mix, self.other]
        return blocks + ([self.residual, self.residual, self.split, self.reused] if self.depth < 2 else [])

    def inner(self, shape: Shape) -> list[nn.Module]:
        """A short row, for a block that holds others."""
        self.depth += 1
        row = self.row(self.keeping(), shape, 2)
        self.depth -= 1
        return row

    def unit(self, shape: Shape) -> nn.Module:
        return in_sequence(self.layers(self.pick(*UNITS), shape, shape[0]))

    def mix(self, shape: Shape) -> nn.Module:
        """The channels in another order."""
        number = shape[0]
        groups = self.pick(*(n for n in range(1, number + 1) if n == number or (n > 1 and number % n == 0)))
        index = self.draw(st.permutations(range(number)))
        flip = Functional(torch.flip, dims=(1,))
        return self.pick(flip, Functional(shuffle, groups=groups), Functional(channels, index=index))

    def other(self, shape: Shape) -> nn.Module:
        constant = (Functional(torch.add, other=1.0),) if self.biases else ()
        return self.pick(nn.Dropout(0.5), LayerScale(shape[0], len(shape) - 1), *constant)

    def squeezed(self, shape: Shape, letters: str) -> list[nn.Module]:
        one = (shape[0], *[1] * (len(shape) - 1))
        return [sized("AdaptiveAvgPool", len(shape) - 1)(1), *self.layers(letters, one, shape[0])]

    def gate(self, shape: Shape) -> nn.Module:
        return Gate(nn.Sequential(*self.squeezed(shape, self.pick("c", "crc")), self.pick(*GATES)()))

    def context(self, shape: Shape) -> nn.Module:
        """A sum that broadcasts."""
        return Residual(nn.Sequential(*self.squeezed(shape, "c")), self.pick("x + y", "add(x, y, alpha=2)"))

    def residual(self, shape: Shape) -> nn.Module:
        form, block = self.pick(*Residual.FORMS), self.inner(shape)
        if form == "y += x":
            block.append(self.norm(shape))  # the value of an activation is what its backward pass needs
        return in_sequence([Residual(in_sequence(block), form), *self.layers(self.pick(*AFTER_SUM), shape, shape[0])])

    def split(self, shape: Shape) -> nn.Module:
        return self.pick(Split, Overwritten)(in_sequence(self.inner(((shape[0] + 1) // 2, *shape[1:]))))

    def reused(self, shape: Shape) -> nn.Module:
        return Reused(in_sequence(self.inner(shape)))

    # Blocks that change it

    def changing(self) -> list[Block]:
        return [
            *(self.free, self.free, self.pool, self.pool, self.padded, self.pads_itself),
            *(self.transposed, self.concat, self.concat, self.cut),
        ]

    def free(self, shape: Shape) -> nn.Module:
        """A unit of any width, with strides."""
        return in_sequence(self.layers(self.pick(*UNITS), shape, None))

    def padded(self, shape: Shape) -> nn.Module:
        pad = Functional(F.pad, pad=self.amounts(shape), value=self.pick(0.0, 0.7) if self.biases else 0.0)
        return nn.Sequential(
            *self.layers(self.pick("", "n"), shape), pad, *self.layers("c", shape_after(pad, shape), None)
        )

    def pads_itself(self, shape: Shape) -> nn.Module:
        amounts = self.amounts(shape)
        padded = [n + amounts[-2 * i - 2] + amounts[-2 * i - 1] for i, n in enumerate(shape[1:])]
        convolution = self.convolution((shape[0], *padded))
        assert isinstance(convolution, _ConvNd)
        reach = [d * (k - 1) for d, k in zip(convolution.dilation, convolution.kernel_size, strict=True)]
        if any(r >= n for r, n in zip(reach, padded, strict=True)):
            return self.unit(shape)
        return nn.Sequential(*self.layers(self.pick("", "n"), shape), PadsItself(amounts, convolution))

    def amounts(self, shape: Shape) -> tuple[int, ...]:
        """Of padding: each side of each dimension has its own."""
        return tuple(self.pick(0, 1, 2) for _ in range(2 * len(shape) - 2))

    def pool(self, shape: Shape) -> nn.Module:
        dims, kernel = len(shape) - 1, min(self.pick(2, 3), *shape[1:])
        window = {
            "kernel_size": kernel,
            "stride": self.pick(1, 2),
            "padding": self.pick(0, 1) if kernel > 1 else 0,
            "ceil_mode": self.pick(False, True),
        }
        largest = lambda: sized("MaxPool", dims)(**window)
        options = (
            *(largest, largest),
            lambda: sized("AvgPool", dims)(**window, count_include_pad=self.pick(True, False)),
            lambda: sized(self.pick("AdaptiveAvgPool", "AdaptiveMaxPool"), dims)(self.pick(2, 1, 3)),
        )
        return in_sequence([*self.layers(self.pick("", "n"), shape), self.pick(*options)()])

    def concat(self, shape: Shape) -> nn.Module:
        count = self.pick(1, 2) if shape[0] <= 4 else 2
        branches = [in_sequence(self.layers(self.pick(*UNITS), shape, self.pick(2, 1, 3))) for _ in range(count)]
        concat = Concat(branches if count == 2 else [nn.Identity(), *branches])
        return in_sequence([concat, *self.layers(self.pick(*AFTER_SUM), shape_after(concat, shape), 3)])

    def cut(self, shape: Shape) -> nn.Module:
        """Fewer channels, or more."""
        first = int(shape[0] > 1)
        cut, half = (Functional(channels, index=slice(first, None, step)) for step in (1, 2))
        twice = Functional(repeat_channels)
        return self.pick(cut, twice if shape[0] <= 3 else nn.Sequential(half, twice), half)

    def head(self, shape: Shape, classes: int) -> list[nn.Module]:
        """From the last map to the classes."""
        dims = len(shape) - 1
        options = (
            [Functional(torch.mean, dim=tuple(range(2, dims + 2)))],
            [sized("AdaptiveAvgPool", dims)(1), nn.Flatten()],
            [Functional(torch.flatten, start_dim=1)],
            [sized("AdaptiveMaxPool", dims)(1), nn.Flatten()],
        )
        flat = [*self.layers(self.pick("", "n", "nr"), shape), *self.pick(*options)]
        letters = self.pick(*HEADS)
        outs = [4] * (letters.count("c") - 1) + [classes]
        return flat + self.layers(letters, shape_after(nn.Sequential(*flat), shape), *outs)
