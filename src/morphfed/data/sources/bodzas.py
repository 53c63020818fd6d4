"""Bodzas 2023, Ostrava (doi:10.1038/s41597-023-02378-7): 16,027 BMP of nine classes."""

from __future__ import annotations

import re

from morphfed.data.sources._class_folders import ClassFolders
from morphfed.data.sources.base import SOURCES, Folder

TELLING = {"Neutrophile Band", "Neutrophile Segment"}


@SOURCES.register("bodzas")
class Bodzas(ClassFolders):
    """``Labelled/Neutrophile Band/….bmp``. File names and patients are not described, so any name is taken.

    The pictures are large (46 GB in all) and of unknown scale.
    """

    name = "bodzas"
    title = "Bodzas 2023, Ostrava"
    layout = "its folders are spelt as that set's (Basophile, Neutrophile Band, …)"
    stem = re.compile(r".*")

    def detect(self, folder: Folder) -> float:
        """0.95 × the share of images in its class folders, if a spelling is there that only this set has."""
        labels = {self.label(folder, image) for image in folder.images}
        return super().detect(folder) if labels & TELLING else 0.0
