"""Images and their order: `sets` (folder to records), `synthetic` (the drawn set), `images` (those of a step)."""
