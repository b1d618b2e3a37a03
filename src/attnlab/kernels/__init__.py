"""Fused Neural Attention: see `api.neural_attention`."""
