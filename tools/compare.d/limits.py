"""What this machine can do at all: its disk, its loopback, its cores, and a plain copy."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil

from measure import Failed, Own, answers, free_port, undisturbed
from system import Facts, System

NONE = "-"
HUGE_PAGES = pathlib.Path("/proc/sys/vm/nr_hugepages")


class Fio(System):
    """The disk, past the page cache. More requests under way, or two jobs, change nothing here; what its buffers are made of
    does (FioHuge)."""

    name = "fio, O_DIRECT"
    is_limit = True
    programs = ("fio",)
    # Requests under way.
    depth = 16
    # A rate is known long before all values are written one by one.
    value_seconds_max = 5

    def facts_of(self, stage: str) -> Facts:
        durable = {"put": "on disk, then fsync", "value_set": "each: write, then fdatasync, one at a time"}
        return Facts(NONE, NONE, durable.get(stage, NONE), "nothing")

    def put(self) -> Own:
        return self.big("write", self.given.file_bytes)

    def get_cold(self) -> Own:
        return self.big("read", self.given.file_bytes)

    def value_set(self) -> Own:
        own = self._fio("write", "values", self.given.values * self.given.value_bytes, f"--bs={self.given.value_bytes}",
                        "--iodepth=1", "--fdatasync=1", f"--runtime={self.value_seconds_max}")
        return dataclasses.replace(own, amount=own.amount // self.given.value_bytes)

    def big(self, direction: str, file_bytes: int) -> Own:
        return self._fio(direction, "fio", file_bytes, "--bs=1M", f"--iodepth={self.depth}", "--end_fsync=1")

    def _fio(self, direction: str, file: str, file_bytes: int, *options: str) -> Own:
        self.meter.call(
            self.program("fio"), "--name=x", f"--filename={self.scratch / file}", f"--size={file_bytes}",
            f"--rw={direction}", "--direct=1", "--ioengine=io_uring", *options, "--output-format=json",
            f"--output={self.scratch / 'fio.json'}")
        text = (self.scratch / "fio.json").read_text()
        # It may say something before it begins.
        job = json.loads(text[text.index("{"):])["jobs"][0]
        side = job[direction]
        if side["bw_bytes"] <= 0:
            raise Failed(f"fio moved nothing: {text[:200]}")
        # Its runtime is whole milliseconds, without its start and the layout of its file.
        seconds = side["io_bytes"] / side["bw_bytes"]
        cpu = (job["usr_cpu"] + job["sys_cpu"]) / 100 * job["job_runtime"] / 1000
        return Own(seconds, cpu, side["io_bytes"])

    def prepare(self, stage: str) -> None:
        if stage == "get_cold" and not (self.scratch / "fio").exists():
            self.put()


class FioHuge(Fio):
    """The same from buffers in huge pages, which are registered: a request of 1 MiB then is a few pieces of memory and not
    256, as gabion's are. Takes as many huge pages as it needs from the kernel, and gives them back."""

    name = "fio, huge pages"

    @classmethod
    def missing(cls, finder) -> str | None:
        return super().missing(finder) or (None if os.access(HUGE_PAGES, os.W_OK) else "huge pages need root")

    def big(self, direction: str, file_bytes: int) -> Own:
        with huge_pages(self.depth):
            return self._fio(direction, "fio", file_bytes, "--bs=1M", f"--iodepth={self.depth}", "--end_fsync=1",
                             "--fixedbufs", "--registerfiles", "--iomem=mmaphuge")

    @classmethod
    def takes_part(cls, stage: str) -> bool:
        return stage in ("put", "get_cold")


@contextlib.contextmanager
def huge_pages(count: int):
    """For as long as it lasts there are so many of 2 MiB more than before."""
    before = int(HUGE_PAGES.read_text())
    try:
        HUGE_PAGES.write_text(str(before + count))
        if int(HUGE_PAGES.read_text()) < before + count:
            raise Failed(f"the kernel has no {count} huge pages")
        yield
    finally:
        with undisturbed():
            HUGE_PAGES.write_text(str(before))


class BareLoop(System):
    """gabion's own sealing and opening of chunks, on all cores, without I/O."""

    name = "bare loop, all cores"
    is_limit = True
    programs = ("bareloop",)

    @classmethod
    def version(cls, finder) -> str:
        return "gabion's"

    def facts_of(self, stage: str) -> Facts:
        return Facts("AES-256-CTR", NONE if stage == "put" else "BLAKE3", NONE, "all in RAM")

    def put(self) -> Own:
        return self._loop("seal")

    def get_hot(self) -> Own:
        return self._loop("open")

    def _loop(self, direction: str) -> Own:
        mib = max(self.given.file_bytes >> 20, 1)
        report = json.loads(self.meter.call(self.program("bareloop"), "chunks", mib))
        side = report[direction]
        return Own(side["seconds"], side["cpu_seconds"], report["bytes"])


class Iperf(System):
    """Loopback, one stream."""

    name = "iperf3, one stream"
    is_limit = True
    programs = ("iperf3",)
    facts = Facts("no", "no", NONE, "all in RAM")
    seconds = 3

    def set_up(self, stages: list[str]) -> None:
        self.port = free_port()
        self.meter.serve([self.program("iperf3"), "-s", "-B", "127.0.0.1", "-p", self.port], "iperf3")
        self.meter.wait_for("iperf3", lambda: answers(self.port))

    def wire(self) -> Own:
        said = json.loads(self.meter.call(
            self.program("iperf3"), "-c", "127.0.0.1", "-p", self.port, "-t", self.seconds, "-J"))
        received = said["end"]["sum_received"]
        return Own(received["seconds"], None, int(received["bytes"]))

    copy = wire
    fetch = wire


class PlainCopy(System):
    """A copy by the page cache, then a sync: the least that a program without a store of its own pays."""

    name = "cp, then sync"
    is_limit = True
    programs = ("cp", "sync")
    facts = Facts("no", "no", "sync", "input and copy in the page cache")

    def put(self) -> None:
        target = self.scratch / "file"
        self.meter.call(self.program("cp"), "--reflink=never", self.given.file, target)
        self.meter.call(self.program("sync"), target)

    def tree_put(self) -> None:
        self.meter.call(self.program("cp"), "-r", "--reflink=never", self.given.tree, self.scratch / "tree")
        self.meter.call(self.program("sync"), "-f", self.scratch)

    def tree_get(self) -> None:
        # Read and left as it is: what the disk was asked for comes out of the page cache.
        self.meter.call(self.program("cp"), "-r", "--reflink=never", self.scratch / "tree", self.scratch / "back")

    def facts_of(self, stage: str) -> Facts:
        return self.facts if stage != "tree_get" else dataclasses.replace(self.facts, durable="no")

    def prepare(self, stage: str) -> None:
        if stage == "tree_get":
            shutil.rmtree(self.scratch / "back", ignore_errors=True)
            if not (self.scratch / "tree").exists():
                self.tree_put()

    def data(self) -> pathlib.Path:
        return self.scratch / "tree"

    def output(self, stage: str) -> pathlib.Path | None:
        return self.scratch / "back" if stage == "tree_get" else None
