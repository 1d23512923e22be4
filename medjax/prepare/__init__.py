"""Preparation: raw cases -> plan and store. NumPy only."""
