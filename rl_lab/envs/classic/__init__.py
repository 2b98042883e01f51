"""Classic control as tensors: Gymnasium's problems, many of them stepping at once on the device."""
