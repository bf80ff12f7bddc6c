"""Random networks, inputs, rules and composites, as Hypothesis strategies."""

from __future__ import annotations

from ...errors import MissingExtraError

try:
    import hypothesis as _  # noqa: F401  # What follows needs it.
except ImportError as error:
    raise MissingExtraError("fxlrp.testing", "hypothesis", "testing") from error

from .composite import composites, rules
from .network import inputs, networks

__all__ = ["composites", "inputs", "networks", "rules"]
