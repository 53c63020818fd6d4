"""Adapters: one small file per layout in which images arrive."""
