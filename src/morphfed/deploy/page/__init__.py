"""The read-only page of `morphfed federation watch --serve`."""
