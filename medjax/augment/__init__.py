"""Augmentation on the device: enlarged patches -> network patches."""
