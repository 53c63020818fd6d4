"""Training across a network: what a consortium agrees on, how its machines are set up, and what runs on each."""
