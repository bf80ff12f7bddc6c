"""What tells models, composites and images apart, so that numbers of one are not taken for another's."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import partial
from numbers import Number
from typing import Any

import torch
from torch import Tensor, nn
from zennit.core import Composite, Hook, Stabilizer

from ..models import tensors_by_path
from ..rules.zennit.spelled import spelled

__all__ = ["described", "digest", "digest_of_model", "hashed"]


def digest(*tensors: Tensor | None) -> str:
    """A few letters that are others for other values, dtypes or shapes."""
    found = hashlib.blake2b(digest_size=8)
    for tensor in tensors:
        if tensor is not None:
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            found.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            found.update(flat.view(torch.uint8).numpy().data)
        found.update(b";")
    return found.hexdigest()


def digest_of_model(model: nn.Module) -> str:
    """The same of a model's class, parameters and buffers."""
    named = {name: each for name, each in tensors_by_path(model).items() if each.layout is torch.strided}
    return f"{type(model).__name__} {hashed(repr([*named]))} {digest(*named.values())}"


def hashed(text: str) -> str:
    """A few letters in place of a text."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def described(value: Any) -> str:
    """A value in words that are the same in every process: of composites, their rules with numbers."""
    if isinstance(value, Composite):
        rules = {name: each for name, each in vars(value).items() if name not in _MACHINERY}
        return f"{type(value).__name__}({described(rules)})"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {described(each)}' for key, each in value.items())}}}"
    if isinstance(value, partial):
        return described([value.func, value.args, value.keywords])
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(described, value))}]"
    return _one(value)


def _one(value: Any) -> str:
    if isinstance(value, Hook | Stabilizer):
        return spelled(value)
    if isinstance(value, Tensor):
        return f"tensor {digest(value)}"
    if value is None or isinstance(value, Number | str | slice | range):
        return repr(value)
    return str(getattr(value, "__qualname__", type(value).__qualname__))


_MACHINERY = ("handles", "hook_refs", "canonizer_instances", "canonizers", "module_map")
"""What zennit's composites hold beside their rules."""
