"""Weights of other programs into medjax's parameter trees: one table file per family, one core that reads and accounts."""
