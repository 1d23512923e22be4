"""Other programs that benchmarks and parity tests compare with; most need the `parity` extra."""
