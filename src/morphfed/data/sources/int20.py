"""INT-20, the pre-release of MLL23: 18 folders with numbered German names."""

from __future__ import annotations

import re

from morphfed.data.sources._class_folders import ClassFolders
from morphfed.data.sources.base import SOURCES


@SOURCES.register("int20")
class INT20(ClassFolders):
    """``01-NORMO/…``, ``17-Kernschatten/…``: the folders' names alone are known, so any file name is taken.

    No patient ids and no published scale. Many of its cells are MLL23's: never use both as two sites.
    """

    name = "int20"
    title = "INT-20, the pre-release of MLL23, with its German folder names"
    layout = "its folders have INT-20's numbered names (01-NORMO, 17-Kernschatten)"
    stem = re.compile(r".*")
