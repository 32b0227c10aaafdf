"""Object stores with an S3 door, one node each, asked by the same client."""

from __future__ import annotations

import json
import os
import pathlib
import re
import secrets
import subprocess

from measure import Failed, answers, free_port
from peers import Peer, cached
from system import Facts

BUCKET = "given"


class ObjectStore(Peer):
    """`start` of a subclass sets `port`, `key` and `secret`, and makes the bucket."""

    to_sink = ("get_cold", "get_hot", "wire")

    def environment(self) -> dict[str, str]:
        keys = {"AWS_ACCESS_KEY_ID": self.key, "AWS_SECRET_ACCESS_KEY": self.secret}
        return os.environ | keys | {"AWS_REGION": "garage"}

    def s5cmd(self, *arguments: object, to: str | pathlib.Path | None = None) -> None:
        self.meter.call(*self.client(), *arguments, to=to, env=self.environment())

    def client(self) -> list[str]:
        return [self.program("s5cmd"), "--endpoint-url", f"http://127.0.0.1:{self.port}", "--numworkers", "64",
                "--log", "error"]

    def make_bucket(self) -> None:
        """A store that has just begun to listen may not be ready yet."""
        def is_made() -> bool:
            ran = subprocess.run([*self.client(), "mb", f"s3://{BUCKET}"], env=self.environment(), capture_output=True,
                                 text=True, check=False)
            return ran.returncode == 0 or "Already" in ran.stderr
        self.meter.wait_for("a bucket", is_made)

    def start(self, stages: list[str]) -> None:
        raise NotImplementedError

    def set_up(self, stages: list[str]) -> None:
        self.done: set[str] = set()
        self.start(stages)
        if set(stages) & {"wire", "copy"}:
            self.put()
        if "tree_copy" in stages:
            self.tree_put()

    def prepare(self, stage: str) -> None:
        super().prepare(stage)
        before = {"get_cold": "put", "get_hot": "put", "tree_get": "tree_put"}.get(stage)
        if before and before not in self.done:
            self.run(before)

    def put(self) -> None:
        self.done.add("put")
        self.s5cmd("cp", self.given.file, f"s3://{BUCKET}/file")

    def get_cold(self) -> None:
        self.s5cmd("cat", f"s3://{BUCKET}/file", to=self.sink)

    get_hot = get_cold
    wire = get_cold

    def copy(self) -> None:
        self.s5cmd("cp", f"s3://{BUCKET}/file", self.out("copy"))

    def tree_put(self) -> None:
        self.done.add("tree_put")
        self.s5cmd("cp", f"{self.given.tree}/", f"s3://{BUCKET}/tree/")

    def tree_get(self) -> None:
        self.s5cmd("cp", f"s3://{BUCKET}/tree/*", f"{self.out('tree')}/")

    tree_copy = tree_get


class SeaweedFs(ObjectStore):
    name = "SeaweedFS, S3"
    programs = ("weed", "s5cmd")

    def facts_of(self, stage: str) -> Facts:
        is_get = "get" in stage or stage in ("wire", "copy", "tree_copy")
        return Facts("no", "CRC32" if is_get else "MD5", "no", cached(stage))

    def start(self, stages: list[str]) -> None:
        self.key, self.secret = "key", secrets.token_hex(16)
        config = self.scratch / "s3.json"
        config.write_text(json.dumps({"identities": [{
            "name": "compare", "credentials": [{"accessKey": self.key, "secretKey": self.secret}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"]}]}))
        self.port, master, volume, filer = (free_port() for _ in range(4))
        (self.scratch / "weed").mkdir()
        self.meter.serve([
            self.program("weed"), "server", f"-dir={self.scratch / 'weed'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
            f"-master.port={master}", f"-volume.port={volume}", "-volume.max=0", "-filer", f"-filer.port={filer}",
            "-s3", f"-s3.port={self.port}", f"-s3.config={config}"], "weed", cwd=self.scratch)
        self.meter.wait_for("SeaweedFS", lambda: answers(self.port))
        self.make_bucket()
        # The first object waits until volumes were made: that is set-up.
        small = self.scratch / "small"
        small.write_bytes(b"small")
        self.s5cmd("cp", small, f"s3://{BUCKET}/small")

    def data(self) -> pathlib.Path:
        return self.scratch / "weed"


class Garage(ObjectStore):
    name = "Garage, S3"
    programs = ("garage", "s5cmd")

    def facts_of(self, stage: str) -> Facts:
        return Facts("no", "MD5" if "put" in stage else "BLAKE2, each block", "no", cached(stage))

    def start(self, stages: list[str]) -> None:
        rpc, self.port = free_port(), free_port()
        config = self.scratch / "garage.toml"
        config.write_text(
            f'metadata_dir = "{self.scratch / "meta"}"\ndata_dir = "{self.scratch / "data"}"\ndb_engine = "lmdb"\n'
            f'replication_factor = 1\nrpc_bind_addr = "127.0.0.1:{rpc}"\nrpc_public_addr = "127.0.0.1:{rpc}"\n'
            f'rpc_secret = "{secrets.token_hex(32)}"\ncompression_level = "none"\n'
            f'[s3_api]\ns3_region = "garage"\napi_bind_addr = "127.0.0.1:{self.port}"\nroot_domain = ".s3.localhost"\n')
        garage = [self.program("garage"), "-c", config]
        self.meter.serve([*garage, "server"], "garage")
        self.meter.wait_for("Garage", lambda: answers(self.port))

        def told(*arguments: str) -> str:
            return self.quietly(*garage, *arguments)

        node = told("node", "id", "-q").split("@")[0]
        told("layout", "assign", "-z", "here", "-c", "1T", node)
        told("layout", "apply", "--version", "1")
        text = told("key", "create", "compare")
        key, secret = re.search(r"GK[0-9a-f]+", text), re.search(r"[Ss]ecret key:\s*([0-9a-f]+)", text)
        if not key or not secret:
            raise Failed(f"no key in what garage says: {text[:200]}")
        self.key, self.secret = key[0], secret[1]
        told("bucket", "create", BUCKET)
        told("bucket", "allow", "--read", "--write", "--owner", BUCKET, "--key", "compare")

    def data(self) -> pathlib.Path:
        return self.scratch / "data"
