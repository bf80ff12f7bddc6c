"""Affine maps that no linear layer precedes are absorbed by the linear layers behind them, whatever lies between.

Pahde et al., Optimizing Explanations by Network Canonization and Hyperparameter Search, supplement: (A.9) for a linear
layer, (A.10)-(A.15) for a convolution that pads its input, (A.23)-(A.26) for a layer that reads the map's value among
others.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from ..graph import SHAPE_ONLY, call, replace_reads
from ..marks import CARRIED, SIZE_BOUND, Fold
from ..ops.linear import CONVOLUTIONS, LINEAR, TRANSPOSED, layer_of, padded_convolution, scaled_weight, with_bias_map
from ..place import module_path
from ..reading import is_known, read_as, unwrap
from .fold import groups_of
from .follow import Follower
from .report import mark
from .sample import spread
from .scaled import Scaled, whole

__all__ = ["absorb_affine_maps"]

aten = torch.ops.aten


def absorbed(weight: Tensor, scales: Tensor, index: Tensor, groups: int, transposed: bool) -> Tensor:
    """A linear layer's weight with the scale of each input channel taken into it, (A.9), (A.14), (A.23)."""
    # Along its input channels, a convolution's weight is laid out as a transposed one's along its output channels.
    return scaled_weight(weight, spread(scales, index, 1.0), groups, not transposed)


def absorb_affine_maps(graph_module: fx.GraphModule, *, threshold_relu: bool = True) -> None:
    """Let each linear layer take in the affine maps in front of it, through linear ops, max pooling and ReLUs.

    Other readers of an affine map keep it. Where padding lies between, the layer's bias becomes a feature map, (A.15).

    Parameters
    ----------
    graph_module : fx.GraphModule
        Batch norms are read as `affine`.
    threshold_relu : bool
        Whether a map is moved through a ReLU, which then clips at a threshold.
    """
    follower = Follower(graph_module, threshold_relu)
    for node in list(graph_module.graph.nodes):
        if node.op != "call_function":
            continue
        if layer_of(unwrap(node)[0]) not in with_bias_map:
            follower.follow(node)
        elif _absorb(follower, node):
            # The maps, and what is constant at all, depend on the spatial size.
            SIZE_BOUND.put(graph_module, True)
    for node, found in follower.found.items():
        CARRIED.put(node, True)
        # What reads only a shape is not to keep a map alive.
        for user in list(node.users):
            if user.target in SHAPE_ONLY:
                user.replace_input_with(node, found.base)


def _absorb(follower: Follower, node: fx.Node) -> bool:
    """Take what is in front of a linear layer into its weight and bias; False if there is nothing that it can take."""
    target, args, _ = unwrap(node)
    operands: list[Any] = [*args, *(None,) * (3 - len(args))]
    x, weight, bias, *options = operands
    part, shape = follower.found.get(x), follower.sample.shape(x)
    if part is None or shape is None or not (is_known(node) or weight in follower.parameters):
        return False
    layer = layer_of(target)
    fully = layer in LINEAR
    name, along = node.name, -1 if fully else 1
    with node.graph.inserting_before(node):
        if part.channels(along) is None:
            part = follower.with_scale_in_base(node, part)
        channels = part.channels(along)
        assert channels is not None
        index = follower.constant(node, channels)
        new_weight = call(
            node, absorbed, weight, part.scales, index, groups_of(node), layer in TRANSPOSED, name=f"{name}_weight"
        )
        spot = part.shift
        size = [int(n) for n in spot.meta["val"].shape]
        at = len(size) - 1 if fully else 1
        uniform = all(n == 1 for dim, n in enumerate(size) if dim != at)
        extent = _extent(node) if uniform and layer is target else None
        if extent is None:
            spot = call(node, whole, spot, [size[0], *shape[1:]])
        else:
            spot = call(node, whole, spot, [*size[:at], shape[at], *extent])
        new_bias = call(node, target, spot, weight, bias, *options, name=f"{name}_bias")
        if extent is not None:
            new_bias = call(node, aten.reshape.default, new_bias, [-1], name=f"{name}_bias")
        else:
            target = with_bias_map[layer]
    operands = [part.base, new_weight, new_bias, *options]
    with node.graph.inserting_before(node.next):
        if part.constant and not is_known(node):
            new = call(node, target, *operands, name=name)
        else:
            new = read_as(node, target, *operands, name=name)
    into = module_path(node) or name
    mark(new, node, [Fold(path, into, _how(part, extent)) for path in part.maps])
    replace_reads(node, new)
    return True


def _extent(layer: fx.Node) -> list[int] | None:
    """The size of an input that gives one output of a layer which does not pad; None if it pads, or is transposed."""
    target, operands, _ = unwrap(layer)
    args: list[Any] = list(operands)
    if target in LINEAR:
        return []
    padding = args[4] if len(args) > 4 else 0
    none = not any(padding) if isinstance(padding, list | tuple) else padding in ("valid", 0)
    if target not in CONVOLUTIONS or target is padded_convolution or not none:
        return None
    kernel = args[1].meta["val"].shape[2:]
    dilation = args[5] if len(args) > 5 else [1]
    dilation = list(dilation) * len(kernel) if len(dilation) == 1 else dilation
    return [int(d * (k - 1) + 1) for d, k in zip(dilation, kernel, strict=True)]


def _how(part: Scaled, extent: list[int] | None) -> str:
    notes = ["BN -> linear (A.9)"]
    if part.thresholded:
        notes.append("thresholded ReLU")
    if extent is None:
        notes.append("bias map (A.15)")
    return ", ".join(notes)
