"""Ground truth: a folder of images, and what says where their objects are."""

from .folder import ImageFolder

__all__ = ["ImageFolder"]
