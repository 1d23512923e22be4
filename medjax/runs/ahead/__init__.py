"""The training step of several devices, or of a card that is not there: lowered, compiled, read."""
