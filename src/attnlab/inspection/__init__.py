"""Inspection of a trained model: generated text and attention maps."""
