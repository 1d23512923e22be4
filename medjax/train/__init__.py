"""Training: one loop, one state, rule lists for what differs."""
