"""Adapters: one small file per layout in which images arrive."""

from morphfed.data.sources.base import SOURCES, Folder, Note, Record, Skipped, Source

__all__ = ["SOURCES", "Folder", "Note", "Record", "Skipped", "Source"]
