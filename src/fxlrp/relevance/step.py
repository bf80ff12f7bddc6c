"""A step of the relevance pass: a rule at its op, as the module that the twin's graph calls."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..errors import RuleError
from ..ops import Call
from ..rules.base import Refused, Rule, Site

__all__ = ["Step"]


class Step(nn.Module):
    """One call of a rule.

    Parameters
    ----------
    rule : Rule
        The rule, as it serves at the site.
    site : Site
        Where it serves.
    """

    def __init__(self, rule: Rule, site: Site) -> None:
        super().__init__()
        self.rule, self.site = rule, site
        self._form = site.op, site.target, site.slots, site.names

    def forward(
        self, relevance: Tensor, output: Tensor, *args: object, **kwargs: object
    ) -> Tensor | tuple[Tensor, ...]:
        """Relevance of each input: a tensor, or a tuple of them where the op has several inputs.

        Parameters
        ----------
        relevance : Tensor
            Relevance of the op's value, of its shape.
        output : Tensor or None
            The op's value.
        *args, **kwargs
            The op's arguments.

        Raises
        ------
        RuleError
            If the rule does not give relevance of each input.
        """
        op, target, slots, names = self._form
        call = Call(op, target, args, kwargs, slots, names)
        try:
            found = self.rule.propagate(call, output, relevance)
            _check(found, call.inputs, relevance)
        except Refused as refused:
            raise self.error(refused) from refused
        return found[0] if len(slots) == 1 else tuple(found)

    def error(self, refused: Refused) -> RuleError:
        """What a rule's refusal is, with the place."""
        return RuleError(f"{self.rule!r} cannot be the rule of {self.site.where}: {refused}")

    def extra_repr(self) -> str:
        return repr(self.rule)


def _check(found: object, inputs: Sequence[Tensor], relevance: Tensor | Sequence[Tensor | None]) -> None:
    """Raise if `found` is not relevance of each of the inputs: broadcast or split, it would go on as if it were."""
    due = f"a list of {len(inputs)} is due: a tensor for each input, of its shape"
    if not isinstance(found, (list, tuple)):
        raise Refused(f"it gave a {type(found).__name__}, where {due}")
    if len(found) != len(inputs):
        raise Refused(f"it gave relevance for {len(found)} inputs, where {due}")
    parts = [relevance] if isinstance(relevance, Tensor) else relevance
    precisions = {part.dtype for part in parts if part is not None}
    for value, x in zip(found, inputs, strict=True):
        if not isinstance(value, Tensor):
            raise Refused(f"it gave a {type(value).__name__} for an input, where {due}")
        if value.shape != x.shape:
            shapes = f"shape {tuple(value.shape)} for an input of shape {tuple(x.shape)}"
            raise Refused(f"it gave relevance of {shapes}, where {due}")
        if value.dtype not in (x.dtype, *precisions):
            raise Refused(f"it gave relevance of {value.dtype} for an input of {x.dtype}, where {due}")
