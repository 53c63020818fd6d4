"""Published files that are not one picture an example → one file each and a table beside; for ``morphfed data unpack``.

The manifest names one image file a row. Arrays in an archive, boxes on whole fields and slices of volumes are
therefore written out once, explicitly, instead of being cut anew at every reading: what is trained on can be looked at,
hashed and checked.
"""

from morphfed.data.unpack.cells import Cell, Unpacked
from morphfed.data.unpack.kinds import KINDS, unpack

__all__ = ["KINDS", "Cell", "Unpacked", "unpack"]
