"""The vocabulary's entries, a file for each family of ops. Importing this package fills the vocabulary."""

from . import activation, arithmetic, attention, linear, normalization, pooling, structure

__all__ = ["activation", "arithmetic", "attention", "linear", "normalization", "pooling", "structure"]
