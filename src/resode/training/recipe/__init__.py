"""Experiments as data: their settings, and how recipes, files and overrides are read."""
