"""The program of the reference pod: hold a model twice, then count.

A serving pod has its weights in memory at least two ways: the downloaded file in a
tmpfs, and the tensors that the framework made of it, at other offsets and other
alignments. That is what makes its checkpoint interesting to a snapshot store, so
this program does the same with nothing but the standard library, then prints
`count N` five times a second: a restored pod proves that it resumed where it was
by going on with the count.

Usage: count.py [MODEL.safetensors]
"""

import importlib
import json
import shutil
import struct
import sys
import time

TMPFS_COPY = "/dev/shm/model.safetensors"

# What a program that serves a model has in memory besides. Nothing here is called;
# without it the pod would be its weights and little else.
SERVING_MODULES = [
    "asyncio",
    "concurrent.futures",
    "ctypes",
    "decimal",
    "email.mime.multipart",
    "http.server",
    "logging.config",
    "multiprocessing.pool",
    "sqlite3",
    "ssl",
    "unittest.mock",
    "urllib.request",
    "xml.etree.ElementTree",
]


def load(path):
    """Every tensor of a safetensors file in a buffer of its own."""
    tensors = {}
    with open(path, "rb") as file:
        (header_length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(header_length))
        data_start = 8 + header_length
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            tensor = bytearray(end - begin)
            file.seek(data_start + begin)
            if file.readinto(tensor) != len(tensor):
                raise EOFError(f"{path}: tensor {name} is cut short")
            tensors[name] = tensor
    return tensors


def main():
    tensors = {}
    if len(sys.argv) > 1:
        for module in SERVING_MODULES:
            try:
                importlib.import_module(module)
            except ImportError:
                pass  # Some builds of Python lack some; the pod is as good without.
        shutil.copyfile(sys.argv[1], TMPFS_COPY)
        tensors = load(TMPFS_COPY)
    size = sum(len(tensor) for tensor in tensors.values())
    print(f"started with {len(tensors)} tensors, {size} bytes", flush=True)
    count = 0
    while True:
        count += 1
        print(f"count {count}", flush=True)
        time.sleep(0.2)


main()
