"""Records, pictures and their order: data sets, the sampler, augmentation parameters, the DALI stream."""
