"""The process that trains: its device, ranks, signals and allocator."""
