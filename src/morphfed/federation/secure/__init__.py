"""Secure sums in the round loop: what is summed, a site's end of it, and the coordinator's."""
