"""Corpora: raw folders in common layouts -> corpus, cases and label sets; checks, fixes, splits."""
