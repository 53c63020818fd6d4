"""Whole slides: opened at a known scale, tissue found, cut into tiles, written as CLAM and TRIDENT users know them.

Needs the extra ``slides`` (OpenSlide, h5py). Features of the tiles are computed in :mod:`morphfed.training.embedding`.
"""
