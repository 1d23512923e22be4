"""What the losses share: targets, exclusive classes, deep supervision."""
