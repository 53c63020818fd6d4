"""Metrics, clustered bootstrap, comparisons between arms."""
