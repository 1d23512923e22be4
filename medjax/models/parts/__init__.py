"""The parts networks are made of: convolutions, norms, attention, experts, adapters."""
