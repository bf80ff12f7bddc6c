"""Where an affine map goes: values behind it as ``scale * base + shift``, with a `base` that is free of the map.

Which scale an element has is found by moving numbers instead of values: the ops behind the map are run, at this moment,
on the numbers of its channels. So an op needs no entry of its own here: it has to be linear. Max pooling and ReLU are
the two others that a map can be moved through.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, fx
from torch.fx.node import Argument

from ..graph import call, constant, parameter_expressions, unpack
from ..ops import Op, lookup, slots_of
from ..ops.activation import thresholded_relu
from ..ops.affine import affine, constant_map
from ..ops.structure import flipped
from ..place import module_path
from ..reading import is_known, unwrap
from ..signature import Target
from .sample import NONE, Sample, filled, item_of, moved, run_on, spread
from .scaled import Scaled, chain, join, signs, thresholds, whole

__all__ = ["Follower"]

aten = torch.ops.aten

_MAX_POOLS = (
    aten.max_pool1d.default,
    aten.max_pool2d.default,
    aten.max_pool3d.default,
    aten.adaptive_max_pool1d.default,
    aten.adaptive_max_pool2d.default,
    aten.adaptive_max_pool3d.default,
)
_PAD_VALUE: dict[Target, int] = {aten.pad.default: 3, aten.constant_pad_nd.default: 2}
"""Where the value stands that an op pads with."""


class Follower:
    """Follows affine maps through a graph, node by node in its order, and writes the bases and shifts into it.

    Parameters
    ----------
    graph_module : fx.GraphModule
        Batch norms are read as `affine`.
    threshold_relu : bool
        Whether maps are moved through ReLUs.
    """

    def __init__(self, graph_module: fx.GraphModule, threshold_relu: bool) -> None:
        self._module, self.graph = graph_module, graph_module.graph
        self._threshold_relu = threshold_relu
        self.sample = Sample(graph_module)
        self.parameters = parameter_expressions(self.graph)
        self.found: dict[fx.Node, Scaled] = {}
        self._random = torch.Generator().manual_seed(0)

    def follow(self, node: fx.Node) -> None:
        """Find out how the value of `node` is made up."""
        found = self._found(node, unwrap(node)[0])
        if found is not None:
            self.found[node] = found

    def _found(self, node: fx.Node, target: Target) -> Scaled | None:
        if target in (affine, constant_map):
            return self._start(node, *unwrap(node)[1])
        source, item = node, None
        if target is operator.getitem:
            source, item = unwrap(node)[1]
            target = unwrap(source)[0]
        elif not isinstance(node.meta.get("val"), Tensor):
            return None  # Each of its items is looked at.
        op = lookup(target)
        if op is None or is_known(source):
            return None
        with self.graph.inserting_before(node):
            if target is aten.relu.default:
                return self._relu(node)
            if target in _MAX_POOLS:
                return self._max_pool(source, item) if not item else None
            return self._linear(source, op, item) if op.linear else None

    def _start(self, node: fx.Node, x: fx.Node, scale: fx.Node, shift: fx.Node) -> Scaled | None:
        """An affine map; behind another one, both together."""
        shape = self.sample.shape(node)
        if shape is None:
            return None
        path = (module_path(node) or node.name,)
        before, constant = self.found.get(x), {scale, shift} <= self.parameters and not is_known(node)
        # Behind the map itself: a known value comes after the value that it is.
        with self.graph.inserting_before(node.next):
            scale, shift = (self._of_full_rank(node, each) for each in (scale, shift))
            sizes = [[int(n) for n in each.meta["val"].shape] for each in (scale, shift)]
            own = torch.arange(math.prod(sizes[0])).reshape(sizes[0]).expand(shape)
            factor, probe = (torch.randn(size, generator=self._random, dtype=torch.float64) for size in sizes)
            if before is None:
                scales = call(node, aten.reshape.default, scale, [-1], name=f"{node.name}_scales")
                return Scaled(x, scales, own, shift, probe, path, constant, False)
            count, there = int(before.scales.meta["val"].shape[0]), before.index != NONE
            numbers, joint = (own * count + before.index)[there].unique(return_inverse=True)
            index = torch.full(shape, NONE).masked_scatter(there, joint)
            of_own, of_before = self.constant(node, numbers // count), self.constant(node, numbers % count)
            pair = call(node, chain, scale, shift, of_own, before.scales, of_before, before.shift)
            scales, spot = unpack(pair, f"{node.name}_scales", f"{node.name}_shift_map")
            probe, maps = factor * before.probe + probe, (*before.maps, *path)
            constant &= before.constant
            return replace(before, scales=scales, index=index, shift=spot, probe=probe, maps=maps, constant=constant)

    def _of_full_rank(self, node: fx.Node, param: fx.Node) -> fx.Node:
        """A map's scale or shift with as many dimensions as its value has."""
        rank = node.meta["val"].ndim
        if param.meta["val"].ndim == rank:
            return param
        return call(node, aten.reshape.default, param, [1, -1, *[1] * (rank - 2)], name=f"{node.name}_shift_map")

    def _relu(self, node: fx.Node) -> Scaled | None:
        """``relu(scale * base + shift)`` as a thresholded ReLU with the same map behind it."""
        before = self.found.get(unwrap(node)[1][0])
        if before is None or not self._threshold_relu:
            return None
        index = _compact(before.index)
        scale = call(node, spread, before.scales, self.constant(node, index), 0.0)
        found = call(node, thresholds, scale, before.shift)
        low, high, shift = unpack(found, f"{node.name}_low", f"{node.name}_high", f"{node.name}_shift_map")
        base = call(node, thresholded_relu, before.base, low, high, name=node.name)
        probe = torch.where(index == NONE, before.probe.relu(), before.probe)
        return self._compacted(node, replace(before, base=base, shift=shift, probe=probe, thresholded=True))

    def _max_pool(self, node: fx.Node, item: int | None) -> Scaled | None:
        """A maximum commutes with a map of a positive scale; of a negative one, once the signs are flipped."""
        target, (x, *options), _ = unwrap(node)
        before = self.found.get(x)
        channels = before.channels(1) if before is not None else None
        if before is None or channels is None or bool((before.index == NONE).any()):
            return None
        pool = lambda x: item_of(target(x, *options), item)
        shifts = whole(before.probe, before.index.shape)
        probe = pool(shifts)
        if not torch.equal(probe, -pool(-shifts)):
            return None
        per_channel = [1, -1, *[1] * (probe.ndim - 2)]
        scale = call(node, spread, before.scales, self.constant(node, channels), 1.0)
        sign = call(node, aten.reshape.default, call(node, signs, scale), per_channel)
        pooled = self._called(node, item, call(node, flipped, before.base, sign), *options)
        shift = self._called(node, item, call(node, whole, before.shift, list(before.index.shape)), *options)
        index = channels.reshape(per_channel).expand(probe.shape)
        base = call(node, flipped, pooled, sign)
        return self._compacted(node, replace(before, base=base, index=index, shift=shift, probe=probe), item=item)

    def _called(self, node: fx.Node, item: int | None, *args: Argument, **kwargs: Argument) -> fx.Node:
        """The op of `node` with other arguments (or an item of what it gives)."""
        value = call(node, unwrap(node)[0], *args, name=node.name, **kwargs)
        return value if item is None else call(node, operator.getitem, value, item)

    def _linear(self, node: fx.Node, op: Op, item: int | None) -> Scaled | None:
        """The value of a linear op (or its item `item`) of which each element comes from elements of one scale."""
        target, dtype = unwrap(node)[0], item_of(node.meta["val"], item).dtype
        slots = slots_of(node, op, lambda operand: isinstance(operand.meta["val"], Tensor))
        parts = [self.found.get(operand) for operand in slots.values()]
        found = [part for part in parts if part is not None]
        sizes = [self.sample.shape(operand) for operand in slots.values()]
        shapes = [size for size in sizes if size is not None]
        settings = self.sample.settings(node, slots)
        if not found or settings is None or len(shapes) < len(slots) or not dtype.is_floating_point:
            return None
        numbers, constants = settings
        run = run_on(node, slots, numbers | constants, item)
        nothing = run(*(torch.zeros(shape, dtype=torch.float64) for shape in shapes))
        padded = bool(nothing.any())
        index = moved(lambda *inputs: run(*inputs) - nothing, _numbered(parts, shapes))
        if index is None or (padded and target not in _PAD_VALUE):
            return None
        scales = found[0].scales if len(parts) == 1 else call(node, join, *(part.scales for part in found))
        cast = scales.meta["val"].dtype != dtype
        if cast:
            scales = call(node, aten.to.dtype, scales, dtype)
        spots, probes = [], []
        for part, shape in zip(parts, shapes, strict=True):
            if part is None:
                spots.append(call(node, aten.new_zeros.default, found[0].scales, shape))
                probes.append(torch.zeros(shape, dtype=torch.float64))
            else:
                spots.append(call(node, whole, part.shift, shape))
                probes.append(whole(part.probe, shape))
        args, kwargs = filled(node, slots, spots, numbers)
        shift = self._called(node, item, *args, **kwargs)
        bases = [operand if p is None else p.base for p, operand in zip(parts, slots.values(), strict=True)]
        args, kwargs = filled(node, slots, bases, {})
        if padded:
            # What is padded with goes into the shift; as a rescaled padding it would be divided by a scale of zero.
            args = args[: _PAD_VALUE[target]]
        base = self._called(node, item, *args, **kwargs)
        maps = tuple(dict.fromkeys(path for part in found for path in part.maps))
        constant = all(part.constant for part in found) and not cast
        thresholded = any(part.thresholded for part in found)
        return self._compacted(
            node, Scaled(base, scales, index, shift, run(*probes), maps, constant, thresholded), item=item
        )

    def with_scale_in_base(self, node: fx.Node, part: Scaled) -> Scaled:
        """The same value with its scale as a product in front of `node`, and none outside."""
        scale = call(node, spread, part.scales, self.constant(node, part.index), 0.0)
        base = call(node, aten.mul.Tensor, part.base, scale, name=f"{node.name}_scaled")
        one = call(node, aten.new_ones.default, part.scales, [1])
        return replace(part, base=base, scales=one, index=torch.zeros_like(part.index))

    def constant(self, node: fx.Node, value: Tensor) -> fx.Node:
        return constant(self._module, node, value, f"{node.name}_index")

    def _compacted(self, node: fx.Node, found: Scaled, item: int | None = None) -> Scaled | None:
        """The same with the shift of one element along each dimension where it is constant."""
        probe, shift = found.probe, found.shift
        for dim in range(shift.meta["val"].ndim):
            first = probe.narrow(dim, 0, 1)
            if probe.shape[dim] > 1 and torch.allclose(probe, first.expand_as(probe), rtol=1e-12, atol=1e-12):
                probe = first
            if probe.shape[dim] == 1 and shift.meta["val"].shape[dim] != 1:
                shift = call(node, aten.slice.Tensor, shift, dim, 0, 1)
        sizes = (node.meta["val"] if item is None else node.meta["val"][item]).shape
        fits = all(one == 1 or isinstance(size, int) for one, size in zip(probe.shape, sizes, strict=True))
        return replace(found, shift=shift, probe=probe) if fits else None


def _numbered(parts: Sequence[Scaled | None], shapes: Sequence[Sequence[int]]) -> list[Tensor]:
    """The numbers of the parts' scales once they are joined; those of a part without any are the last."""
    found, count = [], 0
    for part in parts:
        if part is not None:
            found.append(torch.where(part.index == NONE, NONE, part.index + count))
            count += int(part.scales.meta["val"].shape[0])
    each = iter(found)
    return [
        torch.full(tuple(shape), count) if part is None else next(each)
        for part, shape in zip(parts, shapes, strict=True)
    ]


def _compact(value: Tensor) -> Tensor:
    """One element along each dimension where `value` is constant."""
    for dim in range(value.ndim):
        first = value.narrow(dim, 0, 1)
        value = first if bool((value == first).all()) else value
    return value
