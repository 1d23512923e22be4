"""The training room: one loop, one state, rule lists for what differs."""
