"""Which composite is meant: a zennit one, its name, or fxlrp's default; and what it is for a graph."""

from .naming import DEFAULT, Bounds, Picklable, check_names, foreign_canonizers, names_of, resolve

__all__ = ["DEFAULT", "Bounds", "Picklable", "check_names", "foreign_canonizers", "names_of", "resolve"]
