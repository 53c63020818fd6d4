"""Backbones by name, their normalisation layers, and safetensors in and out."""
