"""One look at every encoded picture before training: headers, damage, whether training can decode it."""
