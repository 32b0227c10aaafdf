"""gabion itself: one node for files, trees and values; two for everything between nodes."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess

from measure import Failed, Own, warm
from system import Facts, System

BETWEEN_NODES = ("wire", "copy", "tree_copy")


class Gabion(System):
    name = "gabion"
    programs = ("gabion",)

    def facts_of(self, stage: str) -> Facts:
        where = "at rest and on the wire" if stage in BETWEEN_NODES else "at rest"
        verified = "-" if stage in ("put", "tree_put", "value_set") else "BLAKE3, each chunk"
        return Facts(where, verified, "before it says so")

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

    def start(self, name: str, nodes: int, ticket: str | None = None) -> None:
        self.meter.serve(self.node(name, "--listen", "127.0.0.1:0"), name, env=self.environment(ticket))

        def is_ready() -> bool:
            # While a node still learns what it owns, its status is an exit code of its own, and so a failure here.
            try:
                return json.loads(self.ask(name, "status", "--json"))["nodes_alive"] >= nodes
            except (Failed, ValueError, KeyError):
                return False

        self.meter.wait_for(f"node {name}", is_ready)

    def set_up(self, stages: list[str]) -> None:
        self.start("a", 1)
        if not set(stages) & set(BETWEEN_NODES):
            return
        if set(stages) & {"wire", "copy"}:
            self.ask("a", "put", self.given.file, "--name", "file")
        if "tree_copy" in stages:
            self.ask("a", "put", "-r", self.given.tree, "--name", "tree")
        # The second comes later and holds nothing of all this.
        self.start("b", 2, self.ask("a", "ticket", "--member").strip())
        warm(self.scratch / "a" / "segments")

    def prepare(self, stage: str) -> None:
        missing = self.missing_put(stage)
        if missing:
            self.run(missing)
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

    def command(self, name: str, *arguments: object) -> None:
        self.meter.call(*self.node(name, *arguments), env=self.environment())

    def put(self) -> None:
        self.done.add("put")
        self.command("a", "put", self.given.file, "--name", "file")

    def get_cold(self) -> None:
        self.command("a", "get", "file", "-o", "/dev/null")

    get_hot = get_cold

    def wire(self) -> None:
        self.command("b", "get", "file", "--remote", "-o", "/dev/null")

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
        return self.scratch / "a" / "segments"
