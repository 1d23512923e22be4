"""The fields of a config: which exist, what they mean, how flags set them."""
