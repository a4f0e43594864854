"""The blocks that the model is built from."""
