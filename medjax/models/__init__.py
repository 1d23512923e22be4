"""Models: arrays in, a dictionary of named outputs out.

Each module offers `make(**arguments) -> nn.Module`.
"""
