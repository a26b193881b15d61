"""Kernels in C++ for what torch's own and its compiler's do slowly on a CPU, built on first use."""
