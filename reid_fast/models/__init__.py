"""The networks: backbones, normalisation layers, the encoder."""
