"""nnU-Net's plans: read as a `Plan` (`read`, `convert`), and as a description of a trained model
(`description`).
"""
