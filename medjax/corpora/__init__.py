"""Corpora: raw folders in every common layout -> a corpus, its cases, its label sets; checks,
corrections, splits.
"""
