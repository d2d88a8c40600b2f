"""Arrays as they may reach the extension: values, types and memory that are legal, and some that are not."""

import numpy as np
from hypothesis import strategies as st

REFUSALS = (ValueError, TypeError, IndexError)


def says_something(error):
    assert len(str(error)) > 10


def misaligned(array):
    """The same values one byte off their alignment."""
    room = np.empty(array.nbytes + 1, np.uint8)
    out = room[1:].view(array.dtype).reshape(array.shape)
    out[...] = array
    return out


def frozen(array):
    out = array.copy()
    out.flags.writeable = False
    return out


def spread(array):
    """Every other element of a larger array, last dimension first."""
    out = np.full([2 * size for size in array.shape], 7, array.dtype)[tuple(slice(None, None, 2) for _ in array.shape)]
    out[...] = array
    return out


class Subclass(np.ndarray):
    pass


# They leave the values as they are.
LAYOUTS = {
    "plain": lambda a: a,
    "Fortran": np.asfortranarray,
    "reversed": lambda a: a[::-1].copy()[::-1],
    "spread": spread,
    "transposed": lambda a: a.T.copy().T,
    "read-only": frozen,
    "misaligned": misaligned,
    "foreign bytes": lambda a: a.astype(a.dtype.newbyteorder()),
    "subclass": lambda a: a.view(Subclass),
    "wider": lambda a: a.astype({"f": np.float64, "i": np.int64}.get(a.dtype.kind, a.dtype)),
}

# They make something else of an array.
SPOILS = {
    "empty": lambda a: a[:0],
    "one less": lambda a: a[:-1],
    "flat": lambda a: a.ravel(),
    "deeper": lambda a: a[None],
    "scalar": lambda a: a.ravel()[0] if a.size else a,
    "no column": lambda a: a[..., :0],
    "objects": lambda a: a.astype(object),
    "booleans": lambda a: a.astype(bool),
    "complex": lambda a: a.astype(complex),
    "texts": lambda a: a.astype(str),
    "huge": lambda a: np.broadcast_to(a[:1], (1 << 40, *a.shape[1:])),
    "list": lambda a: a.tolist(),
    "nothing": lambda a: None,
}


@st.composite
def rows(draw, most=40):
    """[N, D] unit rows, float32: random, equal, nearly equal, on a line."""
    n, width = draw(st.integers(1, most)), draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 16)))
    kind = draw(st.sampled_from(["random", "equal", "last bit", "few", "opposite", "tiny values"]))
    x = rng.normal(size=(n, width))
    if kind in ("equal", "last bit"):
        x[:] = x[0]
    elif kind == "few":
        x = x[rng.integers(min(3, n), size=n)]
    elif kind == "opposite":
        x = x[:1] * rng.choice([-1, 1], size=(n, 1))
    elif kind == "tiny values":
        x[:, 1:] *= 1e-39
        x[:, 0] += 1 - (np.abs(x[:, 0]) > 1e-3)
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    if kind == "last bit":
        x = np.nextafter(x, rng.choice([-2, 2], size=x.shape).astype(np.float32))
    return x


numbers = st.sampled_from(
    [-(1 << 63), -1, 0, 1, 2, 3, 7, 1 << 31, 1 << 40, (1 << 63) - 1, 1 << 64, 2.5, None, "3", True]
)
