"""The attack of docs and SECURITY.md as a command: see `__main__`."""
