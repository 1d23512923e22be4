"""medjax: one JAX engine that turns partly annotated scans into one segmentation model, and that model into masks and numbers."""

__version__ = "0.1.0"
