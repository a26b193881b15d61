"""Setup: an experiment resolved into data, a network, precision and compilation, and memory."""
