"""AML-Cytomorphology_LMU, Munich (Matek 2019, doi:10.7937/tcia.2019.36f5o9ld): 18,365 TIFF of 15 classes."""

from __future__ import annotations

import re
from pathlib import Path

from morphfed.data.sources._class_folders import ClassFolders
from morphfed.data.sources.base import SOURCES, Folder


@SOURCES.register("lmu")
class LMU(ClassFolders):
    """``BAS/BAS_0001.tiff``, also ``BAS_0001 (2021_05_21 20_42_39 UTC).tiff`` and the mirror's ``data/data/BAS/``.

    100 patients with AML and 100 without, but no patient is told for an image. The mirror's ``augmented`` folder holds
    copies and is left out. Files may be RGBA; the scale, 13.8 px/µm, is in the ontology's table of the same name.
    """

    name = "lmu"
    title = "AML-Cytomorphology_LMU, Munich (Matek 2019)"
    layout = "its folders and files are named after LMU's codes (BAS/BAS_0001.tiff)"
    stem = re.compile(r"(?P<label>[A-Z]{3})_\d{4}( \(.*\))?")

    def leave_out(self, folder: Folder, image: Path) -> str:
        """Copies that were turned, mirrored or blurred by somebody."""
        augmented = any("augment" in part.casefold() for part in folder.parts(image))
        return "augmented copy" if augmented else ""
