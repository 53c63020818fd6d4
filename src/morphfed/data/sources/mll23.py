"""MLL23, Munich Leukemia Laboratory (Shetab Boushehri 2025, doi:10.1038/s41597-025-06223-x): 41,621 TIFF."""

from __future__ import annotations

import re

from morphfed.data.sources._class_folders import ClassFolders
from morphfed.data.sources.base import SOURCES


@SOURCES.register("mll23")
class MLL23(ClassFolders):
    """``basophil/basophil_0001.TIF`` or, as the 18 archives unpack, ``basophil/basophil/basophil_0001.TIF``.

    No patient ids. The scale, 11.5 px/µm, is in the ontology's table of the same name.
    """

    name = "mll23"
    title = "MLL23, Munich Leukemia Laboratory (Shetab Boushehri 2025)"
    layout = "its folders and files are named after MLL23's classes (basophil/basophil_0001.TIF)"
    stem = re.compile(r"(?P<label>[a-z_]+)_\d+")
