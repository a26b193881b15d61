"""The version of resode."""

__version__ = "0.1.0"
