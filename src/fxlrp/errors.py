"""The errors that fxlrp raises: each says what happened, where, and what to do."""

from __future__ import annotations

__all__ = [
    "CaptureError",
    "CompositeError",
    "FxlrpError",
    "InputError",
    "MaskError",
    "MissingExtraError",
    "ModelError",
    "ModulePathError",
    "RuleError",
    "TargetError",
    "UnsupportedOpError",
    "VariantError",
]


class FxlrpError(Exception):
    """Base class of every error that fxlrp raises."""


class CaptureError(FxlrpError, RuntimeError):
    """The model could not be captured as a graph, or has no output that can be explained."""


class UnsupportedOpError(FxlrpError, NotImplementedError):
    """Relevance reaches an op for which fxlrp has no entry in its vocabulary."""


class CompositeError(FxlrpError, ValueError):
    """The composite is unknown, matches nothing, or names something that the model has not."""


class RuleError(FxlrpError, ValueError):
    """A rule cannot be applied to the op that the composite gave it to."""


class TargetError(FxlrpError, ValueError):
    """The target does not fit the model's output."""


class InputError(FxlrpError, ValueError):
    """The input cannot be explained: not a floating-point tensor, of another structure, or not finite."""


class MaskError(FxlrpError, ValueError):
    """A foreground mask does not fit the images."""


class VariantError(FxlrpError, ValueError):
    """There is no ISNet of that kind, or it cannot explain this model's output."""


class ModulePathError(FxlrpError, ValueError):
    """A module path is not one of the model's, or its module does nothing in the graph."""


class ModelError(FxlrpError, ValueError):
    """There is no model of that name, or its weights cannot be had or do not fit."""


class MissingExtraError(FxlrpError, ImportError):
    """A feature needs an optional package that is not installed.

    Parameters
    ----------
    feature : str
        What was asked for.
    package : str
        The package that is missing.
    extra : str
        The extra of fxlrp that brings it.
    """

    def __init__(self, feature: str, package: str, extra: str) -> None:
        super().__init__(f"{feature} needs {package}, which is not installed: pip install 'fxlrp[{extra}]'")
