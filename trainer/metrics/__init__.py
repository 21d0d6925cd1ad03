"""Every number that is computed from labels and logits: pure functions, no files, no TensorFlow."""
