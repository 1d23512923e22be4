"""File formats of weights: PyTorch files, archives, StableHLO functions."""
