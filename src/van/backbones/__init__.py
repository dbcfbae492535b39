"""Backbones: the Visual Attention Network, its layers, and its form for inference."""
