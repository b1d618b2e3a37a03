"""Fused Neural Attention: `api.neural_attention` is the door."""
