"""What a training run leaves on disk: its directory, checkpoints, and a record of the environment."""
