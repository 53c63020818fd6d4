"""Secure aggregation: a coordinator learns the sum of the sites' vectors, and of a single site's nothing."""
