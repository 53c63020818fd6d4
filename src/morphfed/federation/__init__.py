"""The round loop, its checkpoints and its transports."""
