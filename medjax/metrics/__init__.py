"""Metrics: pairs of masks -> scores, tables, comparisons."""
