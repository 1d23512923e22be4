"""Key tables of published networks, one module per family."""
