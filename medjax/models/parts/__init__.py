"""Parts of networks: convolutions, norms, attention, experts, heads."""
