"""A trained model as a folder of its own: weights, configuration, tokenizer, card and loader."""
