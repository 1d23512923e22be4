"""What of a prediction runs on the device: the step of a network, its copies, and blending."""
