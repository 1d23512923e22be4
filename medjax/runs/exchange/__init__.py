"""Models that leave or enter medjax: exports, imported weights, adapter files."""
