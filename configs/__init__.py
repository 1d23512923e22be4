"""Experiments: one per file, `get_config(variant)`; the docstring holds the command and what to
expect.
"""
