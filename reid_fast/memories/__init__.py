"""What features are contrasted with: prototypes of clusters, every image, a proxy of each cluster in each camera.

Each memory has a `fill`, once an epoch, and a `step`: the loss against the rows as they are, then the rows' update. The
fused losses save their gradient and not the memory, so the update may come before `backward`.
"""

from reid_fast.memories.buffers import VaryingBuffers, label_means
from reid_fast.memories.instances import InstanceMemory
from reid_fast.memories.prototypes import PrototypeMemory, Update
from reid_fast.memories.proxies import CameraProxies, number_proxies

__all__ = [
    "CameraProxies",
    "InstanceMemory",
    "PrototypeMemory",
    "Update",
    "VaryingBuffers",
    "label_means",
    "number_proxies",
]
