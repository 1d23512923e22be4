"""Verbs of the `medjax` command that this package adds, found by their entry points."""
