"""Shared parts of the losses: targets, exclusive classes, deep supervision."""
