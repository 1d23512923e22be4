"""Sampling: the store -> batches of integers with their meaning, a pure function of the sample
number.
"""
