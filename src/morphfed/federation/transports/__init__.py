"""How downloads and uploads travel."""
