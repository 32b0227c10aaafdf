"""What all compared systems have in common.

A system is set up anew in every round, in a directory of its own, with the same input; then asked for stage after
stage; then torn down. What it is asked for and not timed stands in `prepare`.
"""

from __future__ import annotations

import dataclasses
import filecmp
import functools
import os
import pathlib
import shutil
import subprocess

from measure import NOWHERE, Failed, Meter, Own

# Of programs that are not asked by --version.
VERSION_ARGUMENTS = {"rclone": "version", "s5cmd": "version", "weed": "version", "ssh": "-V"}


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
    # What is fed into a pipe over and over, and up to which lengths.
    pipe_source: pathlib.Path
    piped_bytes: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a system does about the bytes: a figure alone says nothing."""

    encrypted: str
    verified: str
    durable: str
    # What lies in memory, in the page cache or in a cache on disk while it is measured, and afterwards.
    cached: str


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
                return behind_scripts(str(path))
        # Debian keeps servers where only root looks, and cargo what it installs where not every PATH leads.
        elsewhere = f"/usr/sbin:/sbin:{pathlib.Path.home() / '.cargo' / 'bin'}"
        found = shutil.which(program) or shutil.which(program, path=elsewhere)
        return behind_scripts(found) if found else None

    def need(self, program: str) -> str:
        found = self.find(program)
        if found is None:
            raise LookupError(f"no {program}")
        return found

    def version(self, program: str) -> str:
        """The first line that a program prints when asked for it."""
        asked = [self.need(program), VERSION_ARGUMENTS.get(program, "--version")]
        ran = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=False)
        lines = [line for line in (ran.stdout + ran.stderr).splitlines() if line.strip()]
        return lines[0].strip() if lines else "?"

    def started_by_script(self, program: str) -> bool:
        """Then the interpreter's start is measured with it."""
        found = self.find(program)
        return bool(found and is_script(found))


def is_script(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(2) == b"#!"
    except OSError:
        return False


def behind_scripts(path: str) -> str:
    """The program itself, where only pyenv or a script of a Python package would start it: both take a good part of a
    second each time."""
    program = pathlib.Path(path).name
    if is_script(path) and shutil.which("pyenv") and "pyenv" in pathlib.Path(path).read_text(errors="replace"):
        asked = subprocess.run(["pyenv", "which", program], capture_output=True, text=True, check=False)
        if asked.returncode == 0:
            path = asked.stdout.strip()
    if is_script(path):
        packages = pathlib.Path(path).resolve().parents[1].glob(f"lib/python*/site-packages/*/bin/{program}")
        path = next((str(found) for found in packages if os.access(found, os.X_OK) and not is_script(str(found))), path)
    return path


class System:
    """One contender. Subclasses have a method for each stage they take part in, named after it."""

    name = ""
    # A limit of the machine, or something to compare with.
    is_limit = False
    # The limit that its ratios name, where that is not the first of the stage.
    limit = ""
    programs: tuple[str, ...] = ()
    facts = Facts("no", "no", "no", "-")
    # Stages that send the big file into `self.sink`, so that it can be looked at.
    to_sink: tuple[str, ...] = ()

    def __init__(self, finder: Finder, given: Input, scratch: pathlib.Path) -> None:
        self.finder, self.given, self.scratch = finder, given, scratch
        self.meter = Meter(scratch)
        self.sink: str | pathlib.Path = NOWHERE

    @classmethod
    def missing(cls, finder: Finder) -> str | None:
        """Why it cannot take part here."""
        absent = [program for program in cls.programs if finder.find(program) is None]
        return f"no {', '.join(absent)}" if absent else None

    @classmethod
    def version(cls, finder: Finder) -> str:
        """Of all its programs: a client is measured, too."""
        first, *others = ((program, finder.version(program)) for program in cls.programs)
        return ", ".join([first[1], *(said if program in said else f"{program} {said}" for program, said in others)])

    def program(self, name: str) -> str:
        return self.finder.need(name)

    def facts_of(self, stage: str) -> Facts:
        del stage
        return self.facts

    @classmethod
    def takes_part(cls, stage: str) -> bool:
        return hasattr(cls, stage)

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

    def check(self, stage: str) -> None:
        """What came out must be what went in. Not measured; where it came out into nothing, it is asked for again."""
        output = self.output(stage)
        # What was put must come back, whether or not a get is asked for.
        asked = "get_cold" if stage == "put" else stage
        if asked in self.to_sink:
            self.sink = output = self.scratch / "checked"
            try:
                self.run(asked)
            finally:
                self.sink = NOWHERE
        if output is None:
            return
        given = self.given.tree if stage.startswith("tree") else self.given.file
        if not same(given, output):
            raise Failed(f"WRONG BYTES: {output} differs from {given}")
        (self.scratch / "checked").unlink(missing_ok=True)

    def data(self) -> pathlib.Path:
        """Where it keeps what it was given: what is read to make a stage hot."""
        return self.scratch

    def tear_down(self) -> None:
        self.meter.stop()
        shutil.rmtree(self.scratch, ignore_errors=True)


def same(one: pathlib.Path, other: pathlib.Path) -> bool:
    if one.is_file():
        return other.is_file() and filecmp.cmp(one, other, shallow=False)
    files = [path.relative_to(one) for path in one.rglob("*") if path.is_file()]
    return all(same(one / path, other / path) for path in files)
