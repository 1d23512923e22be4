"""Helpers of the tests: not collected, imported by the tests and run as commands."""
