"""Triton kernels, one op a file: device code and its launcher, nothing else. Called through `reid_fast.ops`.

`tiles` and `one_target` are what several of them share.
"""

# A top-level import package `kernels` belongs to another project; this folder is reached through one link only.
if __name__ != "reid_fast.kernels":
    raise ImportError("import reid_fast.kernels, not kernels")
