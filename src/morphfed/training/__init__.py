"""One site's training loop."""
