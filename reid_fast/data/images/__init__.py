"""The images of a step: which ones, how they are augmented, decoded from files or held in memory."""
