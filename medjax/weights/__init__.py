"""Weights: parameters in, out, transferred and grown."""
