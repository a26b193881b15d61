"""Shipped recipes: one YAML file a published experiment."""
