"""Images: which files belong to a set, how they are sampled, decoded and augmented."""
