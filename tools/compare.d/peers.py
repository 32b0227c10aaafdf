"""Programs that people move and keep files with today; those that are installed."""

from __future__ import annotations

import getpass
import os
import pathlib
import shutil
import subprocess

from measure import Failed, Own, answers, free_port
from system import Facts, System


def cached(stage: str) -> str:
    """Of whoever reads and writes by the page cache."""
    if stage == "get_cold":
        return "nothing"
    if stage in ("put", "tree_put"):
        return "what it wrote, in the page cache"
    if stage in ("get_hot", "wire"):
        return "what it stores, in the page cache"
    return "source and output in the page cache"


class Peer(System):
    """Has room for the outputs of its stages."""

    def prepare(self, stage: str) -> None:
        for name in ("copy", "tree"):
            path = self.scratch / "out" / name
            shutil.rmtree(path, ignore_errors=True)
            path.unlink(missing_ok=True)
        (self.scratch / "out").mkdir(exist_ok=True)

    def output(self, stage: str) -> pathlib.Path | None:
        return {"copy": self.out("copy"), "tree_get": self.out("tree"), "tree_copy": self.out("tree")}.get(stage)

    def out(self, name: str) -> pathlib.Path:
        return self.scratch / "out" / name

    def quietly(self, *arguments: object) -> str:
        """A command that is not measured; its output."""
        ran = subprocess.run([str(word) for word in arguments], capture_output=True, text=True, check=False)
        if ran.returncode != 0:
            raise Failed(f"{pathlib.Path(str(arguments[0])).name}: {ran.stderr.strip()[-200:]}")
        return ran.stdout.strip()


class Sendme(Peer):
    """iroh-blobs over QUIC, one provider and one receiver; the provider has hashed everything beforehand."""

    name = "sendme"
    programs = ("sendme",)

    def facts_of(self, stage: str) -> Facts:
        if stage == "tree_put":
            return Facts("no", "-", "no", "hashes and small files in its database; the rest it reads where it lies")
        kept = "; the receiver's copy becomes the file" if stage == "fetch" else ""
        return Facts("on the wire (TLS 1.3)", "BLAKE3, each 16 KiB", "no", cached(stage) + kept)

    def set_up(self, stages: list[str]) -> None:
        self.tickets: dict[pathlib.Path, str] = {}
        for stage, path in (("fetch", self.given.file), ("copy", self.given.file), ("tree_copy", self.given.tree)):
            if stage in stages and path not in self.tickets:
                self.tickets[path] = self._provide(path)

    def _provide(self, path: pathlib.Path) -> str:
        """Until there is a ticket: from then on it can be asked for."""
        name = f"provider-{path.name}"
        folder = self.scratch / name
        folder.mkdir(exist_ok=True)
        self.meter.serve([self.program("sendme"), "send", "--ticket-type", "addresses", "--relay", "disabled",
                          "--magic-ipv4-addr", f"127.0.0.1:{free_port()}", path], name, cwd=folder)
        self.meter.wait_for("a ticket of sendme", lambda: "sendme receive" in self.meter.log(name), 600)
        return self.meter.log(name).split("sendme receive", 1)[1].split()[0]

    def _receive(self, path: pathlib.Path) -> None:
        self.meter.call(self.program("sendme"), "receive", "--relay", "disabled", self.tickets[path],
                        cwd=self.scratch / "out")

    def copy(self) -> None:
        self._receive(self.given.file)

    fetch = copy

    def tree_put(self) -> None:
        self._provide(self.given.tree)

    def tree_copy(self) -> None:
        self._receive(self.given.tree)

    def prepare(self, stage: str) -> None:
        shutil.rmtree(self.scratch / "out", ignore_errors=True)
        super().prepare(stage)

    def output(self, stage: str) -> pathlib.Path | None:
        # It names what it receives as the sender did.
        path = {"copy": self.given.file, "fetch": self.given.file, "tree_copy": self.given.tree}.get(stage)
        return self.scratch / "out" / path.name if path else None


class RcloneCrypt(Peer):
    """rclone's encrypted store in a local directory."""

    name = "rclone crypt"
    programs = ("rclone",)
    to_sink = ("get_cold", "get_hot")

    def facts_of(self, stage: str) -> Facts:
        is_get = "get" in stage
        return Facts("at rest", "Poly1305, each 64 KiB" if is_get else "-", "no", cached(stage))

    def set_up(self, stages: list[str]) -> None:
        (self.scratch / "store").mkdir()
        password = self.quietly(self.program("rclone"), "obscure", "correct horse")
        self.remote = f":crypt,remote='{self.scratch / 'store'}',password='{password}':"
        self.done: set[str] = set()

    def rclone(self, *arguments: object, to: str | pathlib.Path | None = None) -> None:
        self.meter.call(self.program("rclone"), "--config", "/dev/null", *arguments, to=to)

    def prepare(self, stage: str) -> None:
        super().prepare(stage)
        before = {"get_cold": "put", "get_hot": "put", "tree_get": "tree_put"}.get(stage)
        if before and before not in self.done:
            self.run(before)

    def put(self) -> None:
        self.done.add("put")
        self.rclone("copyto", self.given.file, f"{self.remote}file")

    def get_cold(self) -> None:
        self.rclone("cat", f"{self.remote}file", to=self.sink)

    get_hot = get_cold

    def tree_put(self) -> None:
        self.done.add("tree_put")
        self.rclone("copy", "--transfers", "16", self.given.tree, f"{self.remote}tree")

    def tree_get(self) -> None:
        self.rclone("copy", "--transfers", "16", f"{self.remote}tree", self.out("tree"))

    def data(self) -> pathlib.Path:
        return self.scratch / "store"


class RcloneSftp(Peer):
    """rclone serves the directory by SFTP, and reads it."""

    name = "rclone sftp"
    programs = ("rclone",)
    to_sink = ("wire",)

    def facts_of(self, stage: str) -> Facts:
        return Facts("on the wire (SSH)", "-" if stage == "wire" else "MD5, whole file", "no", cached(stage))

    def set_up(self, stages: list[str]) -> None:
        port, word = free_port(), "gabion"
        self.meter.serve([self.program("rclone"), "--config", "/dev/null", "serve", "sftp", self.given.file.parent,
                          "--addr", f"127.0.0.1:{port}", "--user", word, "--pass", word, "--read-only"], "rclone")
        self.meter.wait_for("rclone serve sftp", lambda: answers(port))
        password = self.quietly(self.program("rclone"), "obscure", word)
        self.remote = f":sftp,host=127.0.0.1,port={port},user={word},pass='{password}':"

    def rclone(self, *arguments: object, to: str | pathlib.Path | None = None) -> None:
        self.meter.call(self.program("rclone"), "--config", "/dev/null", *arguments, to=to)

    def wire(self) -> None:
        self.rclone("cat", f"{self.remote}{self.given.file.name}", to=self.sink)

    def copy(self) -> None:
        self.rclone("copyto", f"{self.remote}{self.given.file.name}", self.out("copy"))

    def tree_copy(self) -> None:
        self.rclone("copy", "--transfers", "16", f"{self.remote}{self.given.tree.name}", self.out("tree"))


class Rsync(Peer):
    """A daemon and a client, nothing encrypted."""

    name = "rsync daemon"
    programs = ("rsync",)
    facts = Facts("no", "whole-file checksum", "no", cached("copy"))

    def set_up(self, stages: list[str]) -> None:
        self.port = free_port()
        config = self.scratch / "rsyncd.conf"
        config.write_text(f"use chroot = no\npid file = {self.scratch / 'rsyncd.pid'}\naddress = 127.0.0.1\n"
                          f"uid = {os.getuid()}\ngid = {os.getgid()}\n[given]\npath = {self.given.file.parent}\n")
        self.meter.serve([self.program("rsync"), "--daemon", "--no-detach", f"--config={config}",
                          f"--port={self.port}"], "rsyncd")
        self.meter.wait_for("the daemon of rsync", lambda: answers(self.port))

    def _rsync(self, name: str, target: pathlib.Path) -> None:
        self.meter.call(self.program("rsync"), "-a", f"rsync://127.0.0.1:{self.port}/given/{name}", target)

    def copy(self) -> None:
        self._rsync(self.given.file.name, self.out("copy"))

    def tree_copy(self) -> None:
        self._rsync(f"{self.given.tree.name}/", self.out("tree"))


class Scp(Peer):
    """An sshd of its own on a port of loopback."""

    name = "scp"
    programs = ("scp", "sshd", "ssh-keygen")
    facts = Facts("on the wire (SSH)", "SSH's MAC", "no", cached("copy"))

    @classmethod
    def version(cls, finder) -> str:
        return finder.version("ssh")

    @classmethod
    def missing(cls, finder) -> str | None:
        # Started by root, sshd insists on a directory that its service makes.
        if os.getuid() == 0 and finder.find("sshd") and not pathlib.Path("/run/sshd").is_dir():
            return "sshd needs the directory /run/sshd (mkdir -m 755 /run/sshd)"
        return super().missing(finder)

    def set_up(self, stages: list[str]) -> None:
        self.port = free_port()
        for key in ("host", "user"):
            self.quietly(self.program("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", self.scratch / key)
        config = self.scratch / "sshd_config"
        config.write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {self.scratch / 'host'}\nPidFile none\nUsePAM no\n"
            f"AuthorizedKeysFile {self.scratch / 'user.pub'}\nStrictModes no\nPermitRootLogin prohibit-password\n"
            "Subsystem sftp internal-sftp\n")
        self.meter.serve([self.program("sshd"), "-D", "-f", config, "-E", self.scratch / "sshd.log"], "sshd-out")
        self.meter.wait_for("sshd", lambda: answers(self.port))

    def _scp(self, path: pathlib.Path, target: pathlib.Path) -> None:
        self.meter.call(self.program("scp"), "-q", "-r", "-P", self.port, "-i", self.scratch / "user", "-F", "none",
                        "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR",
                        f"{getpass.getuser()}@127.0.0.1:{path}", target)

    def copy(self) -> None:
        self._scp(self.given.file, self.out("copy"))

    def tree_copy(self) -> None:
        self._scp(self.given.tree, self.out("tree"))


class Redis(Peer):
    """Values in memory, nothing kept."""

    name = "redis, in memory"
    programs = ("redis-server", "redis-benchmark", "redis-cli")
    durable = "no"
    options: tuple[str, ...] = ("--appendonly", "no")
    # Of each call that fills it: the server answers nobody else meanwhile.
    fill_keys = 10_000

    def facts_of(self, stage: str) -> Facts:
        # redis-benchmark draws keys at random, so a set meets about 0.63 of them, some more than once.
        drawn = "each key is there" if stage == "value_get" else "0.63 of the keys, some set again"
        return Facts("no", "no", self.durable if stage == "value_set" else "-", f"all in RAM; {drawn}")

    def set_up(self, stages: list[str]) -> None:
        self.port = free_port()
        self.meter.serve([self.program("redis-server"), "--bind", "127.0.0.1", "--port", self.port, "--dir",
                          self.scratch, "--save", "", *self.options], "redis")
        self.meter.wait_for("redis", lambda: answers(self.port))

    def prepare(self, stage: str) -> None:
        super().prepare(stage)
        if stage != "value_get":
            return
        # As many keys as gabion has, named as redis-benchmark names them. A get of a key that is not there costs less.
        script = ("for key = ARGV[1], ARGV[2] do redis.call('SET', string.format('key:%012d', key), "
                  "string.rep('x', ARGV[3])) end")
        for first in range(0, self.given.values, self.fill_keys):
            last = min(first + self.fill_keys, self.given.values) - 1
            self.quietly(self.program("redis-cli"), "-p", self.port, "EVAL", script, 0, first, last,
                         self.given.value_bytes)

    def value_set(self) -> Own:
        return self._benchmark("set")

    def value_get(self) -> Own:
        return self._benchmark("get")

    def _benchmark(self, what: str) -> Own:
        given = self.given
        said = self.meter.call(self.program("redis-benchmark"), "-p", self.port, "-d", given.value_bytes, "-c",
                               given.clients, "-P", 1, "-n", given.values, "-r", given.values, "-t", what, "--csv")
        rate = float(said.splitlines()[-1].split(",")[1].strip('"'))
        return Own(given.values / rate)


class RedisDurable(Redis):
    """The same with a log that is synced before it answers."""

    name = "redis, appendfsync always"
    options = ("--appendonly", "yes", "--appendfsync", "always")
    durable = "before it says so"
