"""Inference: windows, mirrors and ensembles; masks on the original grid."""
