"""Processes and what they cost: wall clock, CPU time of everyone involved, memory.

CPU time is user and system time of the measured commands (and of whatever they started and waited for) and of the
servers behind them, all threads. What the kernel writes back later in nobody's name is not in it; the machine's own
count of busy time is kept beside it, which means something on a quiet machine only. Memory is the most that all of
these processes held together at one moment, file mappings not counted, looked at every 50 ms.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import IO

GIB = 1 << 30
TICKS = os.sysconf("SC_CLK_TCK")
SAMPLE_SECONDS = 0.05
STOP_SECONDS = 10
RUN_SECONDS_MAX = 1800
NOWHERE = "/dev/null"
DROP_CACHES = "/proc/sys/vm/drop_caches"
# What asks this program to end.
ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def end(number: int, _: object) -> None:
    """Ends it by an exception that says which signal asked. On the way out servers are stopped, files removed and huge
    pages given back: whoever asks again does not cut that short."""
    for each in ENDINGS:
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt(number)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Signals that ask for the end are heard when this is over."""
    asked: list[int] = []
    before = {number: signal.signal(number, lambda number, _: asked.append(number)) for number in ENDINGS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in asked:
            signal.raise_signal(number)


class Failed(Exception):
    """A system did not do what was asked of it."""


@dataclasses.dataclass
class Run:
    """One measured run. `amount` is bytes, files or values, whatever the stage counts."""

    seconds: float
    cpu_seconds: float
    amount: int
    memory_bytes: int = 0
    # How long the machine then took to bring everything to its disk.
    sync_seconds: float = 0.0
    machine_cpu_seconds: float = 0.0
    # What is to be known about this very run.
    remark: str = ""


@dataclasses.dataclass
class Own:
    """What a program says of itself, where that is closer to the truth than a clock around it."""

    seconds: float
    cpu_seconds: float | None = None
    amount: int | None = None
    remark: str = ""


def read(path: str) -> str:
    """A file of /proc, or nothing when the process has gone."""
    try:
        return pathlib.Path(path).read_text()
    except OSError:
        return ""


def tree(root: int) -> list[int]:
    """A process and its descendants."""
    found, todo = [], [root]
    while todo:
        pid = todo.pop()
        found.append(pid)
        for task in pathlib.Path(f"/proc/{pid}/task").glob("*"):
            todo.extend(int(child) for child in read(f"{task}/children").split())
    return found


def kill_all(root: int) -> None:
    """A process and its descendants, also those that made themselves a session of their own, as jobs of fio do."""
    for pid in tree(root):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def cpu_seconds(root: int) -> float:
    """Of a process, its descendants, and those of them that have ended."""
    total = 0
    for pid in tree(root):
        fields = read(f"/proc/{pid}/stat").rpartition(")")[2].split()
        total += sum(int(field) for field in fields[11:15])
    return total / TICKS


def memory_bytes(root: int) -> int:
    total = 0
    for pid in tree(root):
        for line in read(f"/proc/{pid}/status").splitlines():
            if line.startswith(("RssAnon:", "RssShmem:")):
                total += int(line.split()[1]) * 1024
    return total


def machine_cpu_seconds() -> float:
    """Busy time of all cores."""
    fields = [int(field) for field in read("/proc/stat").splitlines()[0].split()[1:9]]
    idle, waiting = fields[3], fields[4]
    return (sum(fields) - idle - waiting) / TICKS


class Meter:
    """Starts and stops processes of one system, and adds up what they use."""

    def __init__(self, scratch: pathlib.Path) -> None:
        self.scratch = scratch
        self.servers: list[subprocess.Popen[bytes]] = []
        # Put before every measured command.
        self.wrapper: list[str] = []
        self._client: int | None = None
        self._clients_cpu = 0.0
        self._peak = 0

    def serve(self, arguments: list[object], name: str, **options: object) -> subprocess.Popen[bytes]:
        """Starts a server; what it prints goes to NAME.log."""
        # One that has begun is known, to be stopped.
        with undisturbed(), open(self.scratch / f"{name}.log", "ab") as log:
            options = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, "start_new_session": True} | options
            server = subprocess.Popen([str(argument) for argument in arguments], **options)  # type: ignore[call-overload]
            self.servers.append(server)
        return server

    def log(self, name: str) -> str:
        return read(str(self.scratch / f"{name}.log"))

    def wait_for(self, what: str, is_so: Callable[[], bool], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not is_so():
            for server in self.servers:
                if server.poll() is not None:
                    raise Failed(f"{server.args[0]} ended with {server.returncode}")  # type: ignore[index]
            if time.monotonic() > deadline:
                raise Failed(f"{what}: not within {seconds:.0f} s")
            time.sleep(0.05)

    def call(self, *arguments: object, to: str | pathlib.Path | None = None,
             stdin: IO[bytes] | int = subprocess.DEVNULL, stdout: IO[bytes] | None = None,
             cwd: pathlib.Path | None = None, env: dict[str, str] | None = None) -> str:
        """Runs a command to its end; its output, or nothing when that goes into the file `to` or into `stdout`."""
        output, errors = self.scratch / "call.out", self.scratch / "call.err"
        with open(to or output, "wb") as out, open(errors, "wb") as err:
            command = [*self.wrapper, *(str(argument) for argument in arguments)]
            deadline = threading.Timer(RUN_SECONDS_MAX, lambda: kill_all(client.pid))
            client = None
            try:
                with undisturbed():
                    client = subprocess.Popen(command, stdin=stdin, stdout=stdout or out, stderr=err, cwd=cwd, env=env,
                                              start_new_session=True)
                self._client = client.pid
                deadline.start()
                _, status, usage = os.wait4(client.pid, 0)
            except BaseException:
                if client:
                    kill_all(client.pid)
                    client.wait()
                raise
            finally:
                deadline.cancel()
                self._client = None
        client.returncode = os.waitstatus_to_exitcode(status)
        self._clients_cpu += usage.ru_utime + usage.ru_stime
        if client.returncode != 0:
            said = read(str(errors)).strip().splitlines()[-2:] or ["it says nothing"]
            raise Failed(f"{pathlib.Path(str(arguments[0])).name} ended with {client.returncode}: {' '.join(said)}")
        return "" if to or stdout else read(str(output))

    def measure(self, action: Callable[[], Own | None], amount: int, with_sync: bool) -> Run:
        before = sum(cpu_seconds(server.pid) for server in self.servers)
        self._clients_cpu, self._peak = 0.0, 0
        ended = threading.Event()
        sampler = threading.Thread(target=self._sample, args=(ended,), daemon=True)
        sampler.start()
        machine, start = machine_cpu_seconds(), time.monotonic()
        try:
            own = action() or Own(time.monotonic() - start)
        finally:
            ended.set()
            sampler.join()
        synced = time.monotonic()
        if with_sync:
            os.sync()
        sync_seconds = time.monotonic() - synced
        machine = machine_cpu_seconds() - machine
        # A server hears of its client's end a moment later.
        time.sleep(0.1)
        cpu = sum(cpu_seconds(server.pid) for server in self.servers) - before + self._clients_cpu
        if own.cpu_seconds is not None:
            cpu = own.cpu_seconds
        return Run(own.seconds, cpu, own.amount or amount, self._peak, sync_seconds if with_sync else 0.0, machine,
                   own.remark)

    def _sample(self, ended: threading.Event) -> None:
        while True:
            client = self._client
            roots = [server.pid for server in self.servers] + ([client] if client else [])
            self._peak = max(self._peak, sum(memory_bytes(root) for root in roots))
            if ended.wait(SAMPLE_SECONDS):
                return

    def stop(self) -> None:
        """Ends every server that it started, and what those started."""
        for server in self.servers:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGTERM)
        for server in self.servers:
            try:
                server.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()
        self.servers.clear()


def free_port() -> int:
    """A port that is free now, and so is the one 10,000 above it, which some take too."""
    for _ in range(100):
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            low = port if port < 50_000 else port - 20_000
            try:
                second.bind(("127.0.0.1", low + 10_000))
                if low != port:
                    first.close()
                    with socket.socket() as third:
                        third.bind(("127.0.0.1", low))
            except OSError:
                continue
            return low
    raise Failed("there is no free port")


def answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def may_drop_caches() -> bool:
    return os.access(DROP_CACHES, os.W_OK)


def drop_caches() -> None:
    """Empties the page cache, where it may."""
    if may_drop_caches():
        os.sync()
        # Some containers let it be opened, and refuse it all the same.
        with contextlib.suppress(OSError):
            pathlib.Path(DROP_CACHES).write_text("3")


def warm(directory: pathlib.Path) -> None:
    """Reads a file, or everything below a directory, into the page cache."""
    block = bytearray(1 << 20)
    for path in [directory] if directory.is_file() else sorted(directory.rglob("*")):
        if path.is_file():
            with open(path, "rb", buffering=0) as file:
                while file.readinto(block):
                    pass
