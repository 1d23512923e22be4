"""Scans: a file or folder in any format <-> one volume.

The only package that knows (x, y, z) order.
"""
