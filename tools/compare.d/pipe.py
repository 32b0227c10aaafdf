"""The two ends of a pipe, each a process of its own.

    pipe.py feed FILE BYTES       writes the file to stdout, over and over
    pipe.py drain BYTES [FILE]    reads stdin to its end; where a file is given, compares it with the same

Neither copies a byte when it need not (splice: pages of the page cache into the pipe, from the pipe into nothing), so
that what is measured is whoever holds the other end. Repeated content would be stored once. So the file's length is an
odd number of pages: the chunks of as many MiB then all begin at different places of it, and no two are the same.
"""

from __future__ import annotations

import fcntl
import os
import sys

PAGE_BYTES = 4096
PIPE_BYTES = 1 << 20
# 64 MiB, which fit into anybody's page cache.
PAGES_MIN = (64 << 20) // PAGE_BYTES - 1


def source_bytes(piped_bytes: int) -> int:
    """How long a file must be so that no chunk of 1 MiB comes twice."""
    return max(PAGES_MIN, piped_bytes >> 20 | 1) * PAGE_BYTES


def feed(path: str, count: int) -> None:
    with open(path, "rb") as file:
        length, start = os.fstat(file.fileno()).st_size, 0
        while count > 0:
            moved = os.splice(file.fileno(), 1, min(PIPE_BYTES, count, length - start), offset_src=start)
            count -= moved
            start = (start + moved) % length


def drain(expected: int, path: str | None) -> None:
    count = 0
    with open(os.devnull, "wb") as nothing, open(path or os.devnull, "rb") as file:
        while True:
            if path:
                piece = os.read(0, PIPE_BYTES)
                moved = len(piece)
                if not same(piece, file):
                    sys.exit(f"WRONG BYTES after {count}")
            else:
                moved = os.splice(0, nothing.fileno(), PIPE_BYTES)
            if moved == 0:
                break
            count += moved
    if count != expected:
        sys.exit(f"{count} bytes came out of the pipe instead of {expected}")


def same(piece: bytes, file) -> bool:
    while piece:
        part = file.read(len(piece))
        if not part:
            file.seek(0)
        elif not piece.startswith(part):
            return False
        piece = piece[len(part):]
    return True


def main() -> None:
    what, *rest = sys.argv[1:]
    try:
        fcntl.fcntl(1 if what == "feed" else 0, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    except OSError:
        pass
    if what == "feed":
        # The first bytes in the pipe say that it is ready.
        feed(rest[0], int(rest[1]))
    else:
        os.write(1, b"ready\n")
        drain(int(rest[0]), rest[1] if len(rest) > 1 else None)


if __name__ == "__main__":
    main()
