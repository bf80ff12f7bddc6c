"""Whose a frame of a traceback is: the user's, or torch's and ours."""

from __future__ import annotations

import os
import sys
import warnings

import torch

__all__ = ["OURS", "is_users", "warn"]

OURS = os.path.dirname(__file__) + os.sep
"""Where fxlrp's own files are."""

_TORCH = os.path.dirname(torch.__file__)
_SYMPY = os.path.join(os.path.dirname(_TORCH), "sympy")  # torch's own, for sizes.
_PYTHON = os.path.dirname(os.__file__) + os.sep
_NOT_THE_USERS = (OURS, _TORCH + os.sep, _SYMPY + os.sep, "<string>", "<eval_with_key>", "<frozen ")


def is_users(file: str) -> bool:
    """Whether a frame in this file is the user's, or a library's that the model comes from: not torch's, not ours."""
    of_python = file.startswith(_PYTHON) and "-packages" + os.sep not in file
    return not of_python and not file.startswith(_NOT_THE_USERS)


def warn(message: str) -> None:
    """Give a `UserWarning` at the line of the user's that called fxlrp."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and not is_users(frame.f_code.co_filename):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, UserWarning, stacklevel=level)
