"""TSCODE detection heads for Ultralytics YOLO, as a plug-in.

Importing this package arms the plug-in and does nothing else: it is imported at every interpreter start (by the
``.pth`` file the wheel installs), so it must stay free of heavy imports. Public names load on first use.
"""

import os
import sys

__version__ = "0.1.0"

__all__ = ["HeadConfig", "TSCODEDetect", "cfg_path", "register", "unregister"]

_HOMES = {
    "HeadConfig": "tscode_yolo.config",
    "TSCODEDetect": "tscode_yolo.head",
    "cfg_path": "tscode_yolo.register",
    "register": "tscode_yolo.register",
    "unregister": "tscode_yolo.register",
}
