"""The data room: raw scans in, batches of integers with their meaning out. NumPy only; the device part is `augment`."""
