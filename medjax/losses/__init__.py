"""The losses room: `make(**arguments) -> f(outputs, batch)`, counting only what a sample's corpus
annotates.
"""
