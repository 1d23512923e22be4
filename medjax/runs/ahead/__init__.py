"""Compiling a training step for a card that is not there, and reading what the compiler made."""
