"""gabion itself: one node for files, trees and values; two for everything between nodes."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import time

from measure import Failed, Own
from system import Facts, System

BETWEEN_NODES = ("fetch", "wire", "copy", "tree_copy")
# A cache counts as written once it has not grown for so long.
CACHE_STILL_SECONDS = 0.5
CACHE_SECONDS_MAX = 60
# Between two looks at it.
CACHE_LOOK_SECONDS = 0.02


class Gabion(System):
    name = "gabion"
    programs = ("gabion",)
    to_sink = ("get_cold", "get_hot", "fetch", "wire")

    def facts_of(self, stage: str) -> Facts:
        where = "at rest and on the wire" if stage in BETWEEN_NODES else "at rest"
        if stage in ("put", "tree_put", "value_set"):
            return Facts(where, "-", "before it says so", "the index in RAM; chunks go past the page cache")
        cached = {"get_cold": "the index in RAM", "fetch": "the sender's chunks; the receiver keeps a copy on its disk",
                  "value_get": "chunks in the page cache, the index in RAM"}
        chunks = "the sender's chunks" if stage in BETWEEN_NODES else "chunks in the page cache"
        durable = {"fetch": "the copies kept; what comes out is not"}.get(stage, "before it says so")
        if stage in ("get_cold", "get_hot", "wire", "value_get"):
            durable = "no"
        return Facts(where, "BLAKE3, each chunk", durable, cached.get(stage, chunks))

    def node(self, name: str, *arguments: object) -> list[object]:
        return [self.program("gabion"), "--data-dir", self.scratch / name, *arguments]

    def environment(self, ticket: str | None = None) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if key not in ("GABION_DATA_DIR", "GABION_TICKET")}
        return kept | ({"GABION_TICKET": ticket} if ticket else {}) | {"NO_COLOR": "1"}

    def ask(self, name: str, *arguments: object) -> str:
        """A command that is not measured."""
        ran = subprocess.run([str(word) for word in self.node(name, *arguments)], capture_output=True, text=True,
                             env=self.environment(), check=False)
        if ran.returncode != 0:
            raise Failed(f"gabion {arguments[0]}: {ran.stderr.strip()}")
        return ran.stdout

    def status(self, name: str) -> dict:
        return json.loads(self.ask(name, "status", "--json"))

    def start(self, name: str, nodes: int, ticket: str | None = None) -> None:
        # One copy, as everybody else keeps.
        options = [] if ticket else ["--replicas", 1]
        self.meter.serve(self.node(name, "--listen", "127.0.0.1:0", *options), name, env=self.environment(ticket))

        def is_ready() -> bool:
            # While a node still learns what it owns, its status is an exit code of its own, and so a failure here.
            try:
                return self.status(name)["nodes_alive"] >= nodes
            except (Failed, ValueError, KeyError):
                return False

        self.meter.wait_for(f"node {name}", is_ready)

    def set_up(self, stages: list[str]) -> None:
        self.start("a", 1)
        if not set(stages) & set(BETWEEN_NODES):
            return
        if set(stages) & {"fetch", "wire", "copy"}:
            self.ask("a", "put", self.given.file, "--name", "file")
        if "tree_copy" in stages:
            self.ask("a", "put", "-r", self.given.tree, "--name", "tree")
        # The second comes later and holds nothing of all this.
        self.start("b", 2, self.ask("a", "ticket", "--member").strip())

    def prepare(self, stage: str) -> None:
        missing = self.missing_put(stage)
        if missing:
            self.run(missing)
        if stage == "fetch" and self.status("b")["chunks"] > 0:
            raise Failed("the receiver holds chunks before it has asked for any")
        for name in ("copy", "tree"):
            path = self.scratch / name
            shutil.rmtree(path, ignore_errors=True)
            path.unlink(missing_ok=True)
        self.done.add(stage)

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.done: set[str] = set()

    def missing_put(self, stage: str) -> str | None:
        """What must come before this stage and was not asked for."""
        before = {"get_cold": "put", "get_hot": "put", "tree_get": "tree_put", "value_get": "value_set"}.get(stage)
        return before if before and before not in self.done else None

    def command(self, name: str, *arguments: object, **options: object) -> None:
        self.meter.call(*self.node(name, *arguments), env=self.environment(), **options)

    def put(self) -> None:
        self.done.add("put")
        self.command("a", "put", self.given.file, "--name", "file")

    def get_cold(self) -> None:
        self.command("a", "get", "file", "-o", self.sink)

    get_hot = get_cold

    def fetch(self) -> Own:
        """The receiver may keep what it fetches, in the background and while it has buffers to spare: it is done when
        the last kept chunk is on its disk."""
        start = time.monotonic()
        self.command("b", "get", "file", "-o", self.sink)
        written, cached = time.monotonic(), self.status("b")["cache_bytes"]
        looked = written
        while looked - written < CACHE_STILL_SECONDS and looked - start < CACHE_SECONDS_MAX:
            time.sleep(CACHE_LOOK_SECONDS)
            looked, now = time.monotonic(), self.status("b")["cache_bytes"]
            if now != cached:
                written, cached = looked, now
        # Inner nodes of the file's tree are kept as well.
        return Own(written - start, remark=f"{min(cached / self.given.file_bytes, 1):.0%} of it kept")

    def wire(self) -> None:
        self.command("b", "get", "file", "--remote", "-o", self.sink)

    def copy(self) -> None:
        self.command("b", "get", "file", "--remote", "-o", self.scratch / "copy")

    def tree_put(self) -> None:
        self.done.add("tree_put")
        self.command("a", "put", "-r", self.given.tree, "--name", "tree")

    def tree_get(self) -> None:
        self.command("a", "get", "-r", "tree", "-o", self.scratch / "tree")

    def tree_copy(self) -> None:
        self.command("b", "get", "-r", "tree", "--remote", "-o", self.scratch / "tree")

    def value_set(self) -> Own:
        self.done.add("value_set")
        return self._values("put")

    def value_get(self) -> Own:
        return self._values("get")

    def _values(self, what: str) -> Own:
        given = self.given
        said = self.meter.call(self.program("bareloop"), "values", what, self.scratch / "a", given.values,
                               given.value_bytes, given.clients)
        return Own(json.loads(said)["seconds"])

    def output(self, stage: str) -> pathlib.Path | None:
        return {"copy": self.scratch / "copy", "tree_get": self.scratch / "tree",
                "tree_copy": self.scratch / "tree"}.get(stage)

    def data(self) -> pathlib.Path:
        return self.scratch / "a"
