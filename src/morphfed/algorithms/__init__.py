"""Federated algorithms: one file each, both halves, frozen config, paper reference."""
