"""The metrics room: pairs of masks in, honest numbers out."""
