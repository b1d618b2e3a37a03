"""Looking into a trained model: text that it writes, attention maps."""
