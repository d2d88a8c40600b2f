"""BatchNorm by domain: which copy the target's is, and what the layer is called without domains."""

from __future__ import annotations

import re
from collections.abc import Iterable

# The copies of a layer, the target's last. `BN_mix` is of the mixed domain of IDM (Dai et al., ICCV 2021).
_COPIES = (
    ("BN_S", "BN_mix", "BN_T"),  # yxgeee/SpCL, models/dsbn.py; SikaStar/IDM
    ("S_bn", "T_bn"),
    ("dsbn.0", "dsbn.1"),  # open-mmlab/OpenUnReID, models/layers/domain_specific_bn.py
)
_TARGET_OF = {copy: copies[-1] for copies in _COPIES for copy in copies}
_COPY = re.compile(rf"(.+\.)({'|'.join(map(re.escape, _TARGET_OF))})\.([^.]+)")


def without_domains(names: Iterable[str]) -> dict[str, str | None]:
    """What each name is in a network without domains, which computes as the target's does.

    None stands for another domain's copy. A copy without one for the target keeps its name.
    """
    names = set(names)
    found: dict[str, str | None] = {}
    for name in names:
        match = _COPY.fullmatch(name)
        target = match and f"{match[1]}{_TARGET_OF[match[2]]}.{match[3]}"
        if match is None or target not in names:
            found[name] = name
        else:
            found[name] = match[1] + match[3] if name == target else None
    return found
