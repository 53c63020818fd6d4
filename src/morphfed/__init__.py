"""morphfed: federated learning for blood-cell morphology and medical imaging."""

__version__ = "0.1.0"
