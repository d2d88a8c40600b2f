"""The parts of Cluster Contrast's published code that the benchmark calls, in this project's own words.

Names, signatures, and the order and form of the work are the published ones: images decoded at every use by Pillow,
features in a dictionary, a dense Jaccard distance, a memory that moves sample by sample from Python. `bench/run.py`
measures it where no `--peer` is given.
"""
