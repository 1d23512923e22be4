"""Phantoms: the embedded synthetic corpora, for demonstrations and tests."""
