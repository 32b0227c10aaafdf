"""What all compared systems have in common.

A system is set up anew in every round, in a directory of its own, with the same input; then asked for stage after
stage; then torn down. What it is asked for and not timed stands in `prepare`.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import shutil
import subprocess

from measure import Meter, Own


@dataclasses.dataclass(frozen=True)
class Input:
    """The same for all."""

    file: pathlib.Path
    file_bytes: int
    tree: pathlib.Path
    tree_files: int
    tree_file_bytes: int
    values: int
    value_bytes: int
    clients: int


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a system does about the bytes: a figure alone says nothing."""

    encrypted: str
    verified: str
    durable: str


class Finder:
    """Programs: in the peers' directory first, then on the PATH."""

    def __init__(self, gabion: pathlib.Path, peers: pathlib.Path | None) -> None:
        self.gabion = gabion
        self.folders: list[pathlib.Path] = []
        if peers:
            # A program before the Python script that only starts it.
            self.folders = [peers / "bin", *peers.glob("py/lib/*/site-packages/*/bin"), peers / "py" / "bin"]

    @functools.cache  # noqa: B019 (one finder a process)
    def find(self, program: str) -> str | None:
        if program == "gabion":
            return str(self.gabion)
        beside = self.gabion.with_name(program)
        for path in [*(folder / program for folder in self.folders), beside]:
            if path.is_file():
                return str(path)
        # Debian keeps servers where only root looks.
        return shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")

    def need(self, program: str) -> str:
        found = self.find(program)
        if found is None:
            raise LookupError(f"no {program}")
        return found

    def version(self, program: str, *arguments: str) -> str:
        """The first line that a program prints with these arguments."""
        ran = subprocess.run([self.need(program), *arguments], capture_output=True, text=True, timeout=20, check=False)
        lines = [line for line in (ran.stdout + ran.stderr).splitlines() if line.strip()]
        return lines[0].strip() if lines else "?"


class System:
    """One contender. Subclasses have a method for each stage they take part in, named after it."""

    name = ""
    # A limit of the machine, or something to compare with.
    is_limit = False
    programs: tuple[str, ...] = ()
    version_arguments: tuple[str, ...] = ("--version",)
    facts = Facts("no", "no", "no")

    def __init__(self, finder: Finder, given: Input, scratch: pathlib.Path) -> None:
        self.finder, self.given, self.scratch = finder, given, scratch
        self.meter = Meter(scratch)

    @classmethod
    def missing(cls, finder: Finder) -> str | None:
        """Why it cannot take part here."""
        absent = [program for program in cls.programs if finder.find(program) is None]
        return f"no {', '.join(absent)}" if absent else None

    @classmethod
    def version(cls, finder: Finder) -> str:
        return finder.version(cls.programs[0], *cls.version_arguments)

    def program(self, name: str) -> str:
        return self.finder.need(name)

    def facts_of(self, stage: str) -> Facts:
        del stage
        return self.facts

    def takes_part(self, stage: str) -> bool:
        return hasattr(self, stage)

    def set_up(self, stages: list[str]) -> None:
        """Starts servers; these stages will follow, in this order."""

    def prepare(self, stage: str) -> None:
        """What a stage needs and is not timed."""

    def run(self, stage: str) -> Own | None:
        return getattr(self, stage)()

    def output(self, stage: str) -> pathlib.Path | None:
        """What must equal the input after a stage, where there is something to look at."""
        del stage
        return None

    def data(self) -> pathlib.Path:
        """Where it keeps what it was given: what is read to make a stage hot."""
        return self.scratch

    def tear_down(self) -> None:
        self.meter.stop()
        shutil.rmtree(self.scratch, ignore_errors=True)
