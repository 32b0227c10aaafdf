"""Counts system calls of running servers and of commands beside them: by `perf stat`, or by `strace` where the kernel
keeps its events from us. Both slow down what they watch, so nothing is timed meanwhile."""

from __future__ import annotations

import pathlib
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable

from measure import Failed, Meter, read

EVENT = "raw_syscalls:sys_enter"
PERF = ["perf", "stat", "-x", ",", "-e", EVENT]
STRACE = ["strace", "-f", "-c"]
# Until whoever watches has taken hold of all threads, and all of them have ended.
ATTACH_SECONDS = 1.0
END_SECONDS = 60


def counter() -> list[str] | None:
    """A command that counts here; both can also be told whom to watch, and put before another command."""
    for command in (PERF, STRACE):
        if shutil.which(command[0]):
            tried = subprocess.run([*command, "true"], capture_output=True, text=True, check=False)
            if tried.returncode == 0 and total(tried.stderr):
                return command
    return None


def total(said: str) -> int:
    """What either of them says in the end."""
    found = re.search(rf"^(\d+),[^\n]*{EVENT}", said, re.MULTILINE) or re.search(
        r"^\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)(?:\s+\d+)?\s+total$", said, re.MULTILINE)
    return int(found[1]) if found else 0


def count(meter: Meter, action: Callable[[], object], command: list[str]) -> int:
    """All system calls of the servers of `meter`, and of what `action` calls by it."""
    files = [meter.scratch / f"syscalls-{name}" for name in ("servers", "client")]
    watched(meter, action, command, files, ["--"] if command is PERF else [])
    counted = [total(read(str(file))) for file in files]
    if not all(counted):
        raise Failed(f"{command[0]} counted nothing")
    return sum(counted)


def watched(meter: Meter, action: Callable[[], object], command: list[str], files: list[pathlib.Path],
            separator: list[str]) -> None:
    """Has `command` write what it sees of the servers of `meter`, and of what `action` calls by it, into two files."""
    watcher = watch(command, [server.pid for server in meter.servers], files[0])
    meter.wrapper = [*command, "-o", str(files[1]), *separator]
    try:
        action()
    finally:
        meter.wrapper = []
        watcher.send_signal(signal.SIGINT)
        try:
            watcher.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            watcher.kill()
            watcher.wait()


def watch(command: list[str], pids: list[int], file: pathlib.Path) -> subprocess.Popen[bytes]:
    # Each of them takes a list of processes, with all their threads.
    watcher = subprocess.Popen([*command, "-o", str(file), "-p", ",".join(map(str, pids))], stdin=subprocess.DEVNULL,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(ATTACH_SECONDS)
    if watcher.poll() is not None:
        raise Failed(f"{command[0]} may not watch a running process here")
    return watcher
