"""Convert the F32 tensors of a safetensors file to BF16, rounding to nearest even.

Usage: to_bf16.py SOURCE TARGET. A real model in the format that most models are
published in, made without a framework: a list comprehension over each tensor's words
takes some seconds for 90 MB, which is little for something done once.
"""

import array
import json
import struct
import sys


def bf16(words):
    """The upper halves of F32 bit patterns, rounded; NaNs stay (quiet) NaNs."""
    return array.array(
        "H",
        [
            (word + 0x7FFF + (word >> 16 & 1)) >> 16
            if word & 0x7FFFFFFF <= 0x7F800000
            else word >> 16 | 0x40
            for word in words
        ],
    )


def main():
    source, target = sys.argv[1:]
    if sys.byteorder != "little":
        sys.exit("to_bf16.py: written for little-endian machines")
    with open(source, "rb") as file:
        (header_length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(header_length))
        data = file.read()
    metadata = header.pop("__metadata__", None)
    out_header = {} if metadata is None else {"__metadata__": metadata}
    parts = []
    position = 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin, end = entry["data_offsets"]
        tensor, dtype = data[begin:end], entry["dtype"]
        if dtype == "F32":
            tensor, dtype = bf16(array.array("I", tensor)).tobytes(), "BF16"
        parts.append(tensor)
        out_header[name] = {
            "dtype": dtype,
            "shape": entry["shape"],
            "data_offsets": [position, position + len(tensor)],
        }
        position += len(tensor)
    encoded = json.dumps(out_header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with open(target, "wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        file.writelines(parts)


main()
