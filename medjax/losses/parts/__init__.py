"""Shared parts of the losses: targets, averages of voxels, exclusive classes, deep supervision."""
