"""Experiments: settings as data, read from recipes, files and overrides."""
