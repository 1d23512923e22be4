"""Runs: a resolved config -> objects, a run folder, masks and numbers. Config objects stop here."""
