"""Which operators have a kernel in MindSpore's Ascend plugin: `find.py FOLDER NAME...`, as JSON.

The plugin is loaded, whose own code then fills its registries. What it wants of CANN at that moment
is in FOLDER/libhccl.so: functions that do nothing. In a process of its own, for nothing of the
plugin can run, and it would be in the way of the CPU's.
"""

import ctypes
import json
import os
import re
import sys
from pathlib import Path

import mindspore

PLUGIN = Path(mindspore.__file__).parent / "lib" / "plugin" / "libmindspore_ops_ascend.so"
# OpFactory<Name>::Register, which exists for the operators that the plugin registers there.
FACTORY = re.compile(rb"7pyboost9OpFactoryINS1_(\d+)")
REGISTER = b"EE8Register"


def pyboost(plugin: bytes) -> set[str]:
    """The operators that PyNative calls directly."""
    found = set()
    for match in FACTORY.finditer(plugin):
        end = match.end() + int(match[1])
        if plugin.startswith(REGISTER, end):
            found.add(plugin[match.end() : end].decode())
    return found


def main(folder: Path, names: list[str]) -> None:
    for path in (folder / "libhccl.so", PLUGIN):
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL | os.RTLD_LAZY)
    registries = ctypes.CDLL(str(folder / "registries.so"), mode=os.RTLD_LAZY)
    for ask in (registries.in_aclnn, registries.in_adapters):
        ask.restype = ctypes.c_bool
    called = pyboost(PLUGIN.read_bytes())
    found = {
        "pyboost": [name for name in names if name in called],
        "aclnn": [name for name in names if registries.in_aclnn(name.encode())],
        "adapters": [name for name in names if registries.in_adapters(name.encode())],
    }
    print(json.dumps(found), flush=True)
    os._exit(0)  # the plugin's clean-up would ask CANN


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
