"""Write an encoder for other programs: ONNX, BoxMOT, torchvision, …"""

from reid_fast.export.command import main

__all__ = ["main"]
