"""gabion between two pipes, with inputs of several lengths: its rate and its memory must not depend on the length."""

from __future__ import annotations

import contextlib
import os
import pathlib
import select
import subprocess
import sys
import time
from collections.abc import Iterator

from gabion import Gabion
from limits import Fio
from measure import Failed, Own
from system import Facts, Finder, System

START_SECONDS_MAX = 10
PIPE = [sys.executable, str(pathlib.Path(__file__).with_name("pipe.py"))]


def human(count: int) -> str:
    unit, shift = ("GiB", 30) if count >= 1 << 30 else ("MiB", 20)
    return f"{count / (1 << shift):g} {unit}"


@contextlib.contextmanager
def other_end(*arguments: object, **options: object) -> Iterator[subprocess.Popen[bytes]]:
    """The end of the pipe that is not measured: it runs before the clock does, and must have gone well, too."""
    command = [*PIPE, *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
    try:
        select.select([process.stdout], [], [], START_SECONDS_MAX)
        yield process
    except BaseException:
        process.kill()
        raise
    finally:
        for pipe in (process.stdin, process.stdout):
            if pipe:
                pipe.close()
        said = process.stderr.read().decode(errors="replace").strip()
        process.wait()
    if process.returncode != 0:
        raise Failed(said)


class PlainPipe(System):
    """The feeding end and the draining end, with nothing between them."""

    name = "the pipe itself"
    is_limit = True
    facts = Facts("no", "no", "-", "input in the page cache")

    @classmethod
    def missing(cls, finder: Finder) -> str | None:
        return None if hasattr(os, "splice") else "needs Python 3.10"

    @classmethod
    def version(cls, finder: Finder) -> str:
        return f"Python {sys.version.split()[0]}"

    def piped_put(self) -> Own:
        count = max(self.given.piped_bytes)
        with other_end("feed", self.given.pipe_source, count) as feeder:
            started = time.monotonic()
            self.meter.call(*PIPE, "drain", count, stdin=feeder.stdout)
            took = time.monotonic() - started
        return Own(took, amount=count)

    piped_get = piped_put


class Piped(Gabion):
    """One node, one length."""

    piped_bytes = 0

    @classmethod
    def takes_part(cls, stage: str) -> bool:
        return stage in ("piped_put", "piped_get")

    @classmethod
    def missing(cls, finder: Finder) -> str | None:
        return PlainPipe.missing(finder)

    def facts_of(self, stage: str) -> Facts:
        if stage == "piped_put":
            return Facts("at rest", "-", "before it says so", "input in the page cache; chunks go past it")
        return Facts("at rest", "BLAKE3, each chunk", "-", "nothing: chunks went past the page cache")

    def piped_put(self) -> Own:
        with other_end("feed", self.given.pipe_source, self.piped_bytes) as feeder:
            started = time.monotonic()
            self.command("a", "put", "-", "--name", "piped", stdin=feeder.stdout)
            took = time.monotonic() - started
        self.done.add("piped_put")
        return Own(took, amount=self.piped_bytes)

    def piped_get(self) -> Own:
        return self._get()

    def _get(self, *compare_with: pathlib.Path) -> Own:
        with other_end("drain", self.piped_bytes, *compare_with, stdin=subprocess.PIPE) as drain:
            started = time.monotonic()
            self.command("a", "get", "piped", "-o", "-", stdout=drain.stdin)
            took = time.monotonic() - started
        return Own(took, amount=self.piped_bytes)

    def check(self, stage: str) -> None:
        if stage == "piped_get":
            self._get(self.given.pipe_source)


class PipedDisk(Fio):
    """What the disk takes and gives of one length: it may be slower the longer it lasts."""

    piped_bytes = 0

    @classmethod
    def takes_part(cls, stage: str) -> bool:
        return stage in ("piped_put", "piped_get")

    def facts_of(self, stage: str) -> Facts:
        return super().facts_of({"piped_put": "put", "piped_get": "get_cold"}[stage])

    def piped_put(self) -> Own:
        return self.big("write", self.piped_bytes)

    def piped_get(self) -> Own:
        return self.big("read", self.piped_bytes)

    def prepare(self, stage: str) -> None:
        if stage == "piped_get" and not (self.scratch / "fio").exists():
            self.piped_put()


def piped_systems(lengths: tuple[int, ...]) -> list[type[System]]:
    """Two for each length, one after the other: a directory of its own, gone before the next begins."""
    systems: list[type[System]] = []
    for length in lengths:
        disk = type("PipedDisk", (PipedDisk,), {"name": f"fio, {human(length)}", "piped_bytes": length})
        systems += [disk, type("Piped", (Piped,), {"name": f"gabion, {human(length)}", "piped_bytes": length,
                                                   "limit": disk.name})]
    return systems
