"""Sampling: the store -> batches of integers, a pure function of the sample number."""
