"""The memory of a call, as the bytes of its tensors: the same at each run, whatever else the process does."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

__all__ = ["Peak"]


class Peak(TorchDispatchMode):
    """Counts the bytes of all tensors that are made while it is on, and are there at a time.

    Attributes
    ----------
    bytes : int
        The largest number so far.

    Examples
    --------
    >>> import torch
    >>> with Peak() as peak:
    ...     x = torch.ones(1000)
    ...     y = x + 1
    ...     z = (y * 2).sum()
    >>> peak.bytes
    12004
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self._now = 0
        self._known = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in pytree.tree_leaves((args, kwargs)):
            if isinstance(value, Tensor):
                self._known.setdefault(value.untyped_storage(), True)
        found = func(*args, **(kwargs or {}))
        for value in pytree.tree_leaves(found):
            if isinstance(value, Tensor) and value.untyped_storage() not in self._known:
                storage = value.untyped_storage()
                self._known[storage] = True
                self._now += storage.nbytes()
                weakref.finalize(storage, self._freed, storage.nbytes())
        self.bytes = max(self.bytes, self._now)
        return found

    def _freed(self, size: int) -> None:
        self._now -= size
