"""Transformers with one attention mechanism per layer."""
