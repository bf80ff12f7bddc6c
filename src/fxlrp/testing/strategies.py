"""Random networks, inputs, rules and composites, as Hypothesis strategies."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
import zennit.rules as zr
from torch import Tensor, nn
from zennit.composites import LayerMapComposite, SpecialFirstLayerMapComposite
from zennit.core import BasicHook, Composite, Stabilizer
from zennit.layer import Sum
from zennit.types import Activation, AvgPool, BatchNorm, Convolution, Linear

from ..errors import MissingExtraError
from .models import trained

try:
    import hypothesis.strategies as st
except ImportError as error:
    raise MissingExtraError("fxlrp.testing", "hypothesis", "testing") from error

__all__ = ["composites", "inputs", "networks", "rules"]

T = TypeVar("T")
Shape = tuple[int, ...]
Block = Callable[[Shape], nn.Module]

BATCH_NORMS = nn.modules.batchnorm._BatchNorm
SEEDS = st.integers(0, 2**16)


# The modules of the networks, beside torch's own. Their repr shows what they were made with.


class Network(nn.Sequential):
    """A drawn network: fresh under ``seed``, then `trained` with it, then the weights of its batch norms changed."""

    def __init__(self, *layers: nn.Module, input_shape: Shape, seed: int, norm_weights: str) -> None:
        super().__init__(*layers)
        self.input_shape, self.seed, self.norm_weights = input_shape, seed, norm_weights

    def extra_repr(self) -> str:
        return f"input_shape={self.input_shape}, seed={self.seed}, norm_weights={self.norm_weights!r}"


class Functional(nn.Module):
    """A call of a function of one tensor."""

    def __init__(self, function: Callable[..., Tensor], **settings: Any) -> None:
        super().__init__()
        self.function, self.settings = function, settings

    def extra_repr(self) -> str:
        return ", ".join([self.function.__name__, *(f"{key}={value}" for key, value in self.settings.items())])

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, **self.settings)


def channels(x: Tensor, index: Any) -> Tensor:
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

    def __init__(self, pad: Sequence[int], convolution: nn.Module) -> None:
        super().__init__()
        self.pad = tuple(pad)
        self.weight: Any = convolution.weight
        self.bias: Any = convolution.bias
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


# How a network is drawn. Simple things come first: Hypothesis shrinks towards them.

RELUS = (nn.ReLU, lambda: Functional(F.relu))
RELUS_IN_PLACE = (lambda: nn.ReLU(inplace=True), lambda: Functional(F.relu_))
LEAKY = (lambda: nn.LeakyReLU(0.2), lambda: Functional(F.leaky_relu))
SMOOTH = (nn.SiLU, nn.GELU, nn.Hardswish, nn.ReLU6, lambda: Functional(F.silu))
GATES = (nn.Sigmoid, nn.Hardsigmoid, lambda: Functional(torch.sigmoid))

# c: convolution or linear layer, n: batch norm, r: activation, d: dropout
UNITS = ("c", "cr", "cnr", "nrc", "nc", "crn", "rnc", "cnnr", "cc", "cd")
HEADS = ("c", "nc", "crc", "crnc", "cnrdc", "ncrndc", "rc")
AFTER_SUM = ("", "n", "nrc")
LARGE = 9  # sizes above it do not grow further


def _of(name: str, dims: int) -> Any:
    return getattr(nn, f"{name}{dims}d")


def _joined(modules: list[nn.Module]) -> nn.Module:
    return modules[0] if len(modules) == 1 else nn.Sequential(*modules)


def _shape_after(module: nn.Module, shape: Shape) -> Shape:
    with torch.no_grad():
        return tuple(module.eval()(torch.zeros(2, *shape)).shape[1:])


@dataclass
class _Draft:
    """Draws blocks that fit a shape (without the batch), from what a network may hold."""

    draw: st.DrawFn
    biases: bool
    piecewise_linear: bool
    live_statistics: bool
    shared: Shared = field(default_factory=Shared)
    depth: int = 0

    def pick(self, *options: T) -> T:
        # By index: Hypothesis hashes what it samples from, and a function's hash is another in each process.
        return options[self.draw(st.integers(0, len(options) - 1))]

    def row(self, blocks: list[Block], shape: Shape, most: int) -> list[nn.Module]:
        """Up to so many blocks, one after the other."""
        row: list[nn.Module] = []
        for _ in range(self.pick(*range(1, most + 1))):
            row.append(self.pick(*blocks)(shape))
            shape = _shape_after(row[-1], shape)
        return row

    def layers(self, letters: str, shape: Shape, *outs: int | None) -> list[nn.Module]:
        """One layer for each letter; ``outs`` are those of its convolutions, the last one also for any that follow."""
        layers: list[nn.Module] = []
        for index, letter in enumerate(letters):
            if letter == "c":
                layers.append(self.convolution(shape, outs[0]))
                shape, outs = _shape_after(layers[-1], shape), outs[1:] or outs
            elif letter == "n":
                layers.append(self.norm(shape))
            elif letter == "r":
                # In place only on what nobody else reads, and no backward pass needs.
                layers.append(self.activation(shape, in_place=letters[:index].endswith(("c", "n"))))
            else:
                layers.append(nn.Dropout(0.5))
        return layers

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
        return _joined(self.layers(self.pick(*UNITS), shape, shape[0]))

    def norm(self, shape: Shape) -> nn.Module:
        batch_norm = partial(_of("BatchNorm", max(len(shape) - 1, 1)), shape[0])
        kinds = [batch_norm, partial(batch_norm, eps=0.1), partial(batch_norm, affine=False)]
        kinds.append(partial(FrozenBatchNorm, shape[0]))
        if self.live_statistics:
            kinds.append(partial(batch_norm, track_running_stats=False))
            if math.prod(shape[1:]) > 1:
                # With a shift: without one, a mean behind it is zero. What is constant in space is not to be rounding.
                kinds.append(partial(_of("InstanceNorm", len(shape) - 1), shape[0], affine=True, eps=0.1))
        return self.pick(*kinds)()

    def activation(self, shape: Shape, in_place: bool = False) -> nn.Module:
        relus = (*RELUS, lambda: self.shared, *(RELUS_IN_PLACE if in_place else ()))
        smooth = () if self.piecewise_linear else (*SMOOTH, nn.Sigmoid) if self.biases else SMOOTH
        return self.pick(*relus, *relus, *LEAKY, *smooth)()

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
        return [_of("AdaptiveAvgPool", len(shape) - 1)(1), *self.layers(letters, one, shape[0])]

    def gate(self, shape: Shape) -> nn.Module:
        return Gate(nn.Sequential(*self.squeezed(shape, self.pick("c", "crc")), self.pick(*GATES)()))

    def context(self, shape: Shape) -> nn.Module:
        """A sum that broadcasts."""
        return Residual(nn.Sequential(*self.squeezed(shape, "c")), self.pick("x + y", "add(x, y, alpha=2)"))

    def residual(self, shape: Shape) -> nn.Module:
        form, block = self.pick(*Residual.FORMS), self.inner(shape)
        if form == "y += x":
            block.append(self.norm(shape))  # the value of an activation is what its backward pass needs
        return _joined([Residual(_joined(block), form), *self.layers(self.pick(*AFTER_SUM), shape, shape[0])])

    def split(self, shape: Shape) -> nn.Module:
        return self.pick(Split, Overwritten)(_joined(self.inner(((shape[0] + 1) // 2, *shape[1:]))))

    def reused(self, shape: Shape) -> nn.Module:
        return Reused(_joined(self.inner(shape)))

    # Blocks that change it

    def changing(self) -> list[Block]:
        return [
            *(self.free, self.free, self.pool, self.pool, self.padded, self.pads_itself),
            *(self.transposed, self.concat, self.concat, self.cut),
        ]

    def free(self, shape: Shape) -> nn.Module:
        """A unit of any width, with strides."""
        return _joined(self.layers(self.pick(*UNITS), shape, None))

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
        return _of("Conv", len(sizes))(
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

    def padded(self, shape: Shape) -> nn.Module:
        pad = Functional(F.pad, pad=self.amounts(shape), value=self.pick(0.0, 0.7) if self.biases else 0.0)
        return nn.Sequential(
            *self.layers(self.pick("", "n"), shape), pad, *self.layers("c", _shape_after(pad, shape), None)
        )

    def pads_itself(self, shape: Shape) -> nn.Module:
        amounts = self.amounts(shape)
        padded = [n + amounts[-2 * i - 2] + amounts[-2 * i - 1] for i, n in enumerate(shape[1:])]
        convolution: Any = self.convolution((shape[0], *padded))
        reach = [d * (k - 1) for d, k in zip(convolution.dilation, convolution.kernel_size, strict=True)]
        if any(r >= n for r, n in zip(reach, padded, strict=True)):
            return self.unit(shape)
        return nn.Sequential(*self.layers(self.pick("", "n"), shape), PadsItself(amounts, convolution))

    def amounts(self, shape: Shape) -> tuple[int, ...]:
        """Of padding: each side of each dimension has its own."""
        return tuple(self.pick(0, 1, 2) for _ in range(2 * len(shape) - 2))

    def transposed(self, shape: Shape) -> nn.Module:
        groups = self.pick(1, shape[0])
        stride = self.pick(1, 2) if max(shape[1:]) <= LARGE // 2 else 1
        return _of("ConvTranspose", len(shape) - 1)(
            shape[0],
            groups * self.pick(*((1,) if groups > 1 else (2, 3))),
            self.pick(3, 2),
            stride=stride,
            padding=self.pick(0, 1) if min(shape[1:]) > 1 else 0,
            output_padding=self.pick(*range(stride)),
            groups=groups,
            bias=self.pick(True, False),
        )

    def pool(self, shape: Shape) -> nn.Module:
        dims, kernel = len(shape) - 1, min(self.pick(2, 3), *shape[1:])
        window = {
            "kernel_size": kernel,
            "stride": self.pick(1, 2),
            "padding": self.pick(0, 1) if kernel > 1 else 0,
            "ceil_mode": self.pick(False, True),
        }
        largest = lambda: _of("MaxPool", dims)(**window)
        options = (
            *(largest, largest),
            lambda: _of("AvgPool", dims)(**window, count_include_pad=self.pick(True, False)),
            lambda: _of(self.pick("AdaptiveAvgPool", "AdaptiveMaxPool"), dims)(self.pick(2, 1, 3)),
        )
        return _joined([*self.layers(self.pick("", "n"), shape), self.pick(*options)()])

    def concat(self, shape: Shape) -> nn.Module:
        count = self.pick(1, 2) if shape[0] <= 4 else 2
        branches = [_joined(self.layers(self.pick(*UNITS), shape, self.pick(2, 1, 3))) for _ in range(count)]
        concat = Concat(branches if count == 2 else [nn.Identity(), *branches])
        return _joined([concat, *self.layers(self.pick(*AFTER_SUM), _shape_after(concat, shape), 3)])

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
            [_of("AdaptiveAvgPool", dims)(1), nn.Flatten()],
            [Functional(torch.flatten, start_dim=1)],
            [_of("AdaptiveMaxPool", dims)(1), nn.Flatten()],
        )
        flat = [*self.layers(self.pick("", "n", "nr"), shape), *self.pick(*options)]
        letters = self.pick(*HEADS)
        outs = [4] * (letters.count("c") - 1) + [classes]
        return flat + self.layers(letters, _shape_after(nn.Sequential(*flat), shape), *outs)


@st.composite
def networks(  # numpydoc ignore=PR01
    draw: st.DrawFn,
    *,
    dims: Sequence[int] = (1, 2, 3),
    classes: int = 3,
    blocks: int = 4,
    biases: bool = True,
    piecewise_linear: bool = False,
    live_statistics: bool = False,
) -> nn.Module:
    """Draw a small image classifier, in float64 and evaluation mode, as training would leave it.

    Its blocks are convolutions of all kinds, batch norms in every place, activations, pools, sums, concatenations,
    gates, layer scales, reused modules, and operations on channels; its repr shows them. Its in-place operations change
    neither its input nor what its own backward pass needs.

    Parameters
    ----------
    dims : sequence of int
        The numbers of spatial dimensions to draw from: 1, 2, 3.
    classes : int
        Number of outputs, at least 1.
    blocks : int
        At most so many blocks between input and head, at least 1.
    biases : bool
        False: without biases, shifts and constants, and without sigmoids but in gates. Conserving rules then keep all
        relevance, but for what stabilizers take.
    piecewise_linear : bool
        No activation but ReLU and leaky ReLU. (Gates still have their sigmoid.)
    live_statistics : bool
        Also norms that use statistics of the values at hand in evaluation mode: instance norms, and batch norms for
        which samples depend on each other and a batch needs two or more. Only with ``biases``, since a mean that is
        subtracted is a shift.

    Returns
    -------
    SearchStrategy of nn.Module
        Each maps (B, *input_shape) to (B, classes), float64; ``input_shape`` is an attribute of it.

    Raises
    ------
    ValueError
        When drawn, if there are to be live statistics but no biases.
    """
    if live_statistics and not biases:
        raise ValueError("networks without biases have no live statistics: subtracting a mean is a shift")
    seed = draw(SEEDS)
    draft = _Draft(draw, biases=biases, piecewise_linear=piecewise_linear, live_statistics=live_statistics)
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(seed)
        count = draft.pick(*dims)
        sizes = (3, 4, 5, 1) if count == 3 else (5, 6, 7, 8, 9, 1)
        shape = (draft.pick(2, 3, 1, 4), *(draft.pick(*sizes) for _ in range(count)))
        body = draft.row(draft.changing() + draft.keeping(), shape, blocks)
        head = draft.head(_shape_after(nn.Sequential(*body), shape), classes)
    norm_weights = draft.pick("positive", "one negative", "one zero", "one zero, one negative")
    model = Network(*body, *head, input_shape=shape, seed=seed, norm_weights=norm_weights)
    trained(model, seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, BATCH_NORMS | FrozenBatchNorm) and module.weight is not None:
                if "zero" in norm_weights and len(module.weight) > 1:
                    module.weight[0] = 0
                if "negative" in norm_weights:
                    module.weight[-1] *= -1
        for name, tensor in model.state_dict().items():
            if not biases and name.endswith(("bias", "running_mean")):
                tensor.zero_()
    return model.eval()


def _input(shape: Shape, batch: int, seed: int, kind: str) -> Tensor:
    x = torch.randn(batch, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    if kind == "zero sample":
        x[0] = 0
    elif kind == "zero channel":
        x[:, 1:2] = 0
    return x.abs() if kind == "non-negative" else x


def inputs(shape: Sequence[int], *, batch: int = 2) -> st.SearchStrategy[Tensor]:
    """Draw batches of normal numbers: sometimes of their absolute values, or with a sample or a channel of zeros.

    Parameters
    ----------
    shape : sequence of int
        Of one sample: (C, ...). A network's is its ``input_shape``.
    batch : int
        Number of samples B, at least 1.

    Returns
    -------
    SearchStrategy of Tensor
        Each of shape (B, *shape), float64, finite.
    """
    kinds = st.sampled_from(("normal", "non-negative", "zero sample", "zero channel"))
    return st.builds(_input, st.just(tuple(shape)), st.just(batch), SEEDS, kinds)


def rules(*, conserving: bool | None = None) -> st.SearchStrategy[BasicHook]:
    """Draw rules for linear layers, with stabilizers and ``zero_params`` of all kinds.

    Parameters
    ----------
    conserving : bool or None
        True: rules that distribute all relevance, but for the shares of bias and stabilizer. False: alpha-beta rules,
        whose parts may each be empty. None: any of both.

    Returns
    -------
    SearchStrategy of zennit.core.BasicHook
        A new rule each time.
    """
    if conserving is None:
        return rules(conserving=True) | rules(conserving=False)
    e = st.sampled_from((1e-6, 1e-3)) | st.builds(Stabilizer, st.just(0.05), clip=st.just(True))
    zero = st.sampled_from((None, "bias"))
    if not conserving:
        pairs = ((2.0, 1.0), (1.0, 0.0), (1.5, 0.5))
        return st.one_of(*(st.builds(zr.AlphaBeta, st.just(a), st.just(b), e, zero_params=zero) for a, b in pairs))
    return st.one_of(
        st.builds(zr.Epsilon, e, zero_params=zero),
        st.builds(zr.ZPlus, e, zero_params=zero),
        st.builds(zr.Gamma, st.sampled_from((0.25, 0.05, 1.0)), e, zero_params=zero),
        st.builds(zr.Flat, e),
        st.builds(zr.WSquare, e, zero_params=zero),
        st.builds(zr.ZBox, st.just(-3.0), st.just(3.0), e, zero_params=zero),
    )


def _present(entries: tuple[T | None, ...]) -> list[T]:
    return [entry for entry in entries if entry is not None]


def composites(*, conserving: bool | None = None) -> st.SearchStrategy[Composite]:
    """Draw zennit composites: maps from layer types to rules, sometimes with others for the first layer.

    Parameters
    ----------
    conserving : bool or None
        True: every type has a rule, and each conserves. False: any `rules`, activations with a rule that does not
        conserve or none, sums and average pools possibly without one (the gradient). None: any of both.

    Returns
    -------
    SearchStrategy of zennit.core.Composite
        Each a new instance, without canonizers.
    """
    if conserving is None:
        return composites(conserving=True) | composites(conserving=False)
    rule = rules(conserving=True if conserving else None)

    def entry(kind: type, *of_kind: Callable[..., Any]) -> st.SearchStrategy[tuple[type, Any]]:
        return st.tuples(st.just(kind), st.one_of(*(st.builds(build) for build in of_kind)))

    activation, pooled, added = entry(Activation, zr.Pass), entry(AvgPool, zr.Norm), entry(Sum, zr.Norm)
    if not conserving:
        beta = st.tuples(st.just(nn.ReLU), st.builds(zr.ReLUBetaSmooth, st.just(5.0)))
        activation |= entry(nn.ReLU, zr.ReLUGuidedBackprop, zr.ReLUDeconvNet) | beta | st.none()
        pooled, added = pooled | st.none(), added | st.none()
    linear = (st.tuples(st.just(kind), rule) for kind in (Convolution, nn.Linear))
    layers = st.tuples(activation, pooled, added, entry(BatchNorm, zr.Pass), *linear)
    layer_map = layers.map(_present)
    first = st.tuples(
        st.just(Linear),
        st.builds(zr.Flat) | st.builds(zr.ZBox, st.just(-3.0), st.just(3.0)) | st.builds(zr.WSquare),
    )
    special = st.builds(SpecialFirstLayerMapComposite, layer_map, st.tuples(first).map(list))
    return st.builds(LayerMapComposite, layer_map) | special
