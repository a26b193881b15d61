"""The training loop: the step, a session with a run directory, evaluation, divergence, callbacks."""
