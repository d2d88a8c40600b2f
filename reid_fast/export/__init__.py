"""An encoder for other programs: each format in a file of its own."""
