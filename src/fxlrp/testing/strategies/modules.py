"""The modules of random networks, beside torch's own. Their repr shows what they were made with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

__all__ = [
    "Concat",
    "FrozenBatchNorm",
    "Functional",
    "Gate",
    "LayerScale",
    "Network",
    "Overwritten",
    "PadsItself",
    "Residual",
    "Reused",
    "Shape",
    "Shared",
    "Split",
    "channels",
    "repeat_channels",
    "shuffle",
]

Shape = tuple[int, ...]
"""Of one sample: channels, and the size of each spatial dimension."""


class Network(nn.Sequential):
    """A drawn network: fresh under ``seed``, then `trained` with it, then the weights of its batch norms changed."""

    def __init__(self, *layers: nn.Module, input_shape: Shape, seed: int, norm_weights: str) -> None:
        super().__init__(*layers)
        self.input_shape, self.seed, self.norm_weights = input_shape, seed, norm_weights

    def extra_repr(self) -> str:
        return f"input_shape={self.input_shape}, seed={self.seed}, norm_weights={self.norm_weights!r}"


class Functional(nn.Module):
    """A call of a function of one tensor."""

    def __init__(self, function: Callable[..., Tensor], **settings: object) -> None:
        super().__init__()
        self.function, self.settings = function, settings

    def extra_repr(self) -> str:
        return ", ".join([self.function.__name__, *(f"{key}={value}" for key, value in self.settings.items())])

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, **self.settings)


def channels(x: Tensor, index: slice | Sequence[int]) -> Tensor:
    """Some of the channels, or all in another order."""
    return x[:, index]


def repeat_channels(x: Tensor) -> Tensor:
    """All channels twice."""
    return x.repeat(1, 2, *[1] * (x.ndim - 2))


def shuffle(x: Tensor, groups: int) -> Tensor:
    """ShuffleNet's exchange of channels between groups."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


class Shared(nn.ReLU):
    """A ReLU of which a network has one: all its places call the same module."""


class LayerScale(nn.Module):
    """A parameter for each channel, times ``x``."""

    def __init__(self, channels: int, dims: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *[1] * dims))

    def extra_repr(self) -> str:
        return f"{len(self.gamma)}, dims={self.gamma.ndim - 1}"

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class FrozenBatchNorm(nn.Module):
    """``x * scale + shift``, of buffers only, as torchvision's ``FrozenBatchNorm2d``."""

    weight: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), value))

    def extra_repr(self) -> str:
        return str(len(self.weight))

    def forward(self, x: Tensor) -> Tensor:
        weight, bias, mean, var = (buffer.reshape(1, -1, *[1] * (x.ndim - 2)) for buffer in self.buffers())
        scale = weight * (var + 1e-5).rsqrt()
        return x * scale + (bias - mean * scale)


class Concat(nn.ModuleList):
    """The channels of several branches."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self], 1)


class _Around(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block


class Reused(_Around):
    """A block that is called twice."""

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.block(x))


class Gate(_Around):
    """Squeeze and excite: ``x`` times a factor in (0, 1) for each channel, which ``block`` gives."""

    def forward(self, x: Tensor) -> Tensor:
        return x * self.block(x)


class Split(_Around):
    """The first half of the channels through ``block``, the others past it."""

    def forward(self, x: Tensor) -> Tensor:
        first, *others = x.chunk(2, 1)
        return torch.cat([self.block(first), *others], 1)


class Overwritten(_Around):
    """The same, written into a copy."""

    def forward(self, x: Tensor) -> Tensor:
        half = (x.shape[1] + 1) // 2
        y = x.clone()
        y[:, :half] = self.block(x[:, :half])
        return y


class PadsItself(nn.Module):
    """A convolution that pads its own input, differently on each side, as TensorFlow's "SAME" does."""

    def __init__(self, pad: Sequence[int], convolution: _ConvNd) -> None:
        super().__init__()
        self.pad = tuple(pad)
        self.weight = convolution.weight
        self.bias = convolution.bias
        self.settings = {name: getattr(convolution, name) for name in ("stride", "dilation", "groups")}

    def extra_repr(self) -> str:
        return f"pad={self.pad}, weight={tuple(self.weight.shape)}, " + ", ".join(
            f"{key}={value}" for key, value in self.settings.items()
        )

    def forward(self, x: Tensor) -> Tensor:
        convolve = getattr(F, f"conv{x.ndim - 2}d")
        return convolve(F.pad(x, self.pad), self.weight, self.bias, **self.settings)


class Residual(_Around):
    """The sum of a value and what ``block`` makes of it, in one of several forms."""

    FORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "x + y": lambda x, y: x + y,
        "y += x": lambda x, y: y.__iadd__(x),
        "add(x, y, alpha=2)": lambda x, y: torch.add(x, y, alpha=2),
        "add(y, x, alpha=-1)": lambda x, y: torch.add(y, x, alpha=-1),
    }

    def __init__(self, block: nn.Module, form: str) -> None:
        super().__init__(block)
        self.form = form

    def extra_repr(self) -> str:
        return self.form

    def forward(self, x: Tensor) -> Tensor:
        return self.FORMS[self.form](x, self.block(x))
