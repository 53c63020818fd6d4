"""PRR-FL, personalised retrogress-resilient federation, in three pieces that also stand alone.

``fourier.py`` is the aggregation rule (PFA), ``deputy.py`` the site rule (DET), ``prototypes.py`` the exchange behind
the loss (CPA); ``presets.py`` composes them.
"""

from morphfed.algorithms.prr import deputy, fourier, presets

__all__ = ["deputy", "fourier", "presets"]
