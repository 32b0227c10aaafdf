"""Unpacks a frozen data directory of tests/fixtures: unpack.py FILE.pack DIRECTORY

Files without their blocks of zeros: the name's length, the file's length, the number of blocks; the name; of each block
its offset, its length and its bytes. Numbers have 8 bytes, little-endian (tests/promises/durability.rs).
"""

import pathlib
import sys


def main() -> None:
    packed, directory = open(sys.argv[1], "rb"), pathlib.Path(sys.argv[2]).resolve()

    def take(count: int) -> bytes:
        taken = packed.read(count)
        if len(taken) < count:
            sys.exit(f"{sys.argv[1]} is cut short")
        return taken

    def number() -> int:
        return int.from_bytes(take(8), "little")

    while packed.peek(1):
        name_bytes, file_bytes, blocks = number(), number(), number()
        path = (directory / take(name_bytes).decode()).resolve()
        if not path.is_relative_to(directory):
            sys.exit(f"{path} is not below {directory}")
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "xb") as file:
            path.chmod(0o600)
            file.truncate(file_bytes)
            for _ in range(blocks):
                offset, block_bytes = number(), number()
                file.seek(offset)
                file.write(take(block_bytes))


main()
