"""The training process: device, ranks, signals, memory allocator."""
