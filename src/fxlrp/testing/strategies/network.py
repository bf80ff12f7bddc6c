"""Draws whole networks, and inputs for them."""

from __future__ import annotations

from collections.abc import Sequence

import hypothesis.strategies as st
import torch
from torch import Tensor, nn

from ...weights import trained
from .blocks import Blocks
from .layers import shape_after
from .modules import FrozenBatchNorm, Network, Shape

__all__ = ["inputs", "networks"]

BATCH_NORMS = nn.modules.batchnorm._BatchNorm
SEEDS = st.integers(0, 2**16)


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
    draft = Blocks(draw, biases=biases, piecewise_linear=piecewise_linear, live_statistics=live_statistics)
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(seed)
        count = draft.pick(*dims)
        sizes = (3, 4, 5, 1) if count == 3 else (5, 6, 7, 8, 9, 1)
        shape = (draft.pick(2, 3, 1, 4), *(draft.pick(*sizes) for _ in range(count)))
        body = draft.row(draft.changing() + draft.keeping(), shape, blocks)
        head = draft.head(shape_after(nn.Sequential(*body), shape), classes)
    norm_weights = draft.pick("positive", "one negative", "one zero", "one zero, one negative")
    model = Network(*body, *head, input_shape=shape, seed=seed, norm_weights=norm_weights)
    trained(model, seed)
    _change_norm_weights(model, norm_weights)
    if not biases:
        for name, tensor in model.state_dict().items():
            if name.endswith(("bias", "running_mean")):
                tensor.zero_()
    return model.eval()


def _change_norm_weights(model: nn.Module, how: str) -> None:
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, BATCH_NORMS | FrozenBatchNorm) and module.weight is not None:
                if "zero" in how and len(module.weight) > 1:
                    module.weight[0] = 0
                if "negative" in how:
                    module.weight[-1] *= -1


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
