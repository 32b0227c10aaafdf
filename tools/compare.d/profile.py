"""Where CPU time goes: samples of running servers and of the command beside them, by `perf record`, put into a few groups
by the name of the function. Sampling costs little, and nothing is timed meanwhile all the same."""

from __future__ import annotations

import pathlib
import re
import shutil
import subprocess
from collections.abc import Callable

from measure import Failed, Meter
from syscalls import watched

RECORD = ["perf", "record", "-q", "-F", "1999"]
# What a function does, by its name; the first that fits. In front of it stands where it runs: [k] in the kernel, [.] not.
# Without counters of the CPU, as in most virtual machines, what the kernel does without taking interrupts is seen where it
# takes them again: what its scheduler, locks and drivers cost has names like _raw_spin_unlock_irqrestore.
GROUPS = (
    ("hashes, checksums", r"^\[\.\].*(blake3|crc32)"),
    ("encryption", r"^\[\.\].*(aes::|ctr::|cipher|keystream|poly1305|chacha20|universal_hash|ghash|polyval|25519)"),
    ("catalog's database", r"^\[\.\].*(fjall|lsm_tree|skiplist|value_log|quick_cache|xxh3|xxhash|lz4)"),
    ("allocator", r"^\[\.\].*(rjem|rallocx|__rust_(alloc|dealloc|realloc)|__rdl_|_int_(malloc|free)|\b(malloc|calloc|realloc|free|cfree)(@.*)?$)"),
    ("page faults", r"^\[k\].*(page_fault|addr_fault|mm_fault|anonymous_page|clear_page|unmap_page|filemap_map|_pte)"),
    ("copying", r"mem(cpy|move|set)|rep_(movs|stos)|copy_(user|to|from|page|folio)|_copy_"),
    ("the kernel's rest", r"^\[k\]"),
    # The client of values is a program of its own, and in it.
    ("the rest", r""),
)


def sampler() -> list[str] | None:
    """A command that samples here."""
    if not shutil.which("perf"):
        return None
    tried = subprocess.run([*RECORD, "-o", "/dev/null", "true"], capture_output=True, check=False)
    return RECORD if tried.returncode == 0 else None


def take(meter: Meter, action: Callable[[], object], command: list[str]) -> dict[str, float]:
    """The share of each group in the CPU time of the servers of `meter`, and of what `action` calls by it."""
    files = [meter.scratch / f"profile-{name}" for name in ("servers", "client")]
    watched(meter, action, command, files, ["--"])
    return shares([function for file in files for function in functions(file)])


def functions(file: pathlib.Path) -> list[tuple[str, float]]:
    """Names, and the time spent in each."""
    if not file.exists():
        return []
    command = ["perf", "report", "-q", "--stdio", "-i", str(file), "-g", "none", "-F", "period,sym", "-t", "|"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line.split("|", 1) for line in ran.stdout.splitlines() if "|" in line and not line.startswith("#")]
    return [(name.strip(), float(period)) for period, name in lines]


def shares(found: list[tuple[str, float]]) -> dict[str, float]:
    total = sum(time for _, time in found)
    if not total:
        raise Failed("perf saw nothing")
    counted = dict.fromkeys((group for group, _ in GROUPS), 0.0)
    for name, time_in in found:
        counted[next(group for group, pattern in GROUPS if re.search(pattern, name))] += time_in / total
    return counted
