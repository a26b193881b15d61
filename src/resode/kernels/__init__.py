"""Kernels in C++ for operations that torch and its compiler run slowly on a CPU; built on first use.

Importing this package registers them (`resode.acceleration`). Nothing else imports it: without this folder
everything works at the speed of plain torch.
"""

from resode import acceleration

acceleration.twist.register("resode.kernels.generators")
acceleration.backend.register("resode.kernels.fusion:fused")
acceleration.program.register("resode.kernels.inference:program")
acceleration.version.register("resode.kernels.library:version")
