"""What a caller may ask of a network beside the scan."""
