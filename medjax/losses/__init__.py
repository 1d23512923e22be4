"""Losses: `make(**arguments) -> f(outputs, batch)`, over each sample's annotated classes."""
