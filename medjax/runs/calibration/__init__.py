"""Temperatures of a finished run, chosen on its validation cases."""
