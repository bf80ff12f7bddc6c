"""Draws single layers that fit a shape. Simple things come first: Hypothesis shrinks towards them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import hypothesis.strategies as st
import torch
import torch.nn.functional as F
from torch import nn

from .modules import FrozenBatchNorm, Functional, Shape, Shared

__all__ = ["LARGE", "Layers", "in_sequence", "shape_after", "sized"]

T = TypeVar("T")

RELUS = (nn.ReLU, lambda: Functional(F.relu))
RELUS_IN_PLACE = (lambda: nn.ReLU(inplace=True), lambda: Functional(F.relu_))
LEAKY = (lambda: nn.LeakyReLU(0.2), lambda: Functional(F.leaky_relu))
SMOOTH = (nn.SiLU, nn.GELU, nn.Hardswish, nn.ReLU6, lambda: Functional(F.silu))

LARGE = 9
"""Sizes above it do not grow further."""


def sized(name: str, dims: int) -> Callable[..., nn.Module]:
    """Torch's module of that name for so many spatial dimensions."""
    return getattr(nn, f"{name}{dims}d")


def in_sequence(modules: list[nn.Module]) -> nn.Module:
    """One module for several."""
    return modules[0] if len(modules) == 1 else nn.Sequential(*modules)


def shape_after(module: nn.Module, shape: Shape) -> Shape:
    """What a module makes of a sample of that shape."""
    with torch.no_grad():
        return tuple(module.eval()(torch.zeros(2, *shape)).shape[1:])


@dataclass
class Layers:
    """Draws layers that fit a shape (without the batch), of those that a network may hold."""

    draw: st.DrawFn
    biases: bool
    piecewise_linear: bool
    live_statistics: bool
    shared: Shared = field(default_factory=Shared)

    def pick(self, *options: T) -> T:
        """One of these."""
        # By index: Hypothesis hashes what it samples from, and a function's hash is another in each process.
        return options[self.draw(st.integers(0, len(options) - 1))]

    def layers(self, letters: str, shape: Shape, *outs: int | None) -> list[nn.Module]:
        """One layer for each letter: a convolution (c), a batch norm (n), an activation (r), a dropout (d).

        ``outs`` are the channels of its convolutions, the last one also for any that follow.
        """
        layers: list[nn.Module] = []
        for index, letter in enumerate(letters):
            if letter == "c":
                layers.append(self.convolution(shape, outs[0]))
                shape, outs = shape_after(layers[-1], shape), outs[1:] or outs
            elif letter == "n":
                layers.append(self.norm(shape))
            elif letter == "r":
                # In place only on what nobody else reads, and no backward pass needs.
                layers.append(self.activation(shape, in_place=letters[:index].endswith(("c", "n"))))
            else:
                layers.append(nn.Dropout(0.5))
        return layers

    def norm(self, shape: Shape) -> nn.Module:
        batch_norm = partial(sized("BatchNorm", max(len(shape) - 1, 1)), shape[0])
        kinds = [batch_norm, partial(batch_norm, eps=0.1), partial(batch_norm, affine=False)]
        kinds.append(partial(FrozenBatchNorm, shape[0]))
        if self.live_statistics:
            kinds.append(partial(batch_norm, track_running_stats=False))
            if math.prod(shape[1:]) > 1:
                # With a shift: without one, a mean behind it is zero. What is constant in space is not to be rounding.
                kinds.append(partial(sized("InstanceNorm", len(shape) - 1), shape[0], affine=True, eps=0.1))
        return self.pick(*kinds)()

    def activation(self, shape: Shape, in_place: bool = False) -> nn.Module:
        relus = (*RELUS, lambda: self.shared, *(RELUS_IN_PLACE if in_place else ()))
        smooth = () if self.piecewise_linear else (*SMOOTH, nn.Sigmoid) if self.biases else SMOOTH
        return self.pick(*relus, *relus, *LEAKY, *smooth)()

    def convolution(self, shape: Shape, out: int | None = None) -> nn.Module:
        """With ``out`` channels and of the same size, if that is given. A linear layer where there is no space."""
        inputs, sizes, bias = shape[0], shape[1:], self.pick(True, False)
        if not sizes:
            return nn.Linear(inputs, out or 4, bias=bias)
        dilation, stride = self.pick(1, 2), self.pick(1, 2) if out is None else 1
        kernel = [self.pick(1, 3, 2) for _ in sizes]
        if out is not None:
            exact = [tuple(dilation * (k // 2) for k in kernel)] if all(k % 2 for k in kernel) else []
            padding = self.pick(*exact, "same")
        else:
            padding = self.pick(0, *((1, 2) if max(sizes) <= LARGE else ()), *(("same",) if stride == 1 else ()))
        reach = dilation
        if isinstance(padding, int):
            reach = padding
            kernel = [k if dilation * (k - 1) < n + 2 * padding else 1 for k, n in zip(kernel, sizes, strict=True)]
        modes = ["zeros", "replicate"] + ["circular"] * (reach <= min(sizes)) + ["reflect"] * (reach < min(sizes))
        groups = self.pick(*(n for n in range(1, inputs + 1) if inputs % n == (out or 0) % n == 0))
        return sized("Conv", len(sizes))(
            inputs,
            out or groups * self.pick(*(n for n in (2, 3, 1) if n * groups <= 6 or n == 1)),
            tuple(kernel),
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            bias=bias,
            padding_mode=self.pick(*modes),
        )

    def transposed(self, shape: Shape) -> nn.Module:
        groups = self.pick(1, shape[0])
        stride = self.pick(1, 2) if max(shape[1:]) <= LARGE // 2 else 1
        return sized("ConvTranspose", len(shape) - 1)(
            shape[0],
            groups * self.pick(*((1,) if groups > 1 else (2, 3))),
            self.pick(3, 2),
            stride=stride,
            padding=self.pick(0, 1) if min(shape[1:]) > 1 else 0,
            output_padding=self.pick(*range(stride)),
            groups=groups,
            bias=self.pick(True, False),
        )
