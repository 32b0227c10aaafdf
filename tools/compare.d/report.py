"""From runs to a table and a chart.

Of each row the run with the middle time is shown, and the range of all. Ratios are taken inside each round, since what
a disk does drifts from minute to minute, and then the middle one of them is shown. Where two are in the middle, as when
a round has failed, the one that speaks less for gabion is.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from html import escape

from measure import GIB, Run, read
from system import Facts

REFERENCE = "gabion"


@dataclasses.dataclass(frozen=True)
class Stage:
    name: str
    title: str
    # What is counted: "bytes", "files" or "values".
    unit: str
    amount: int
    # Whether it writes: then it is also timed how long the machine needs until all of it is on the disk.
    writes: bool


@dataclasses.dataclass
class Row:
    stage: Stage
    system: str
    is_limit: bool
    # The limit that its ratios name, where that is not the first of the stage.
    limit: str
    facts: Facts
    # By round; nothing where the system failed.
    runs: list[Run | None] = dataclasses.field(default_factory=list)
    # Counted in a round of their own.
    syscalls_per_gib: float | None = None
    # Of its CPU time, by what it is spent on; sampled in a round of its own.
    cpu_shares: dict[str, float] = dataclasses.field(default_factory=dict)

    def done(self) -> list[Run]:
        return [run for run in self.runs if run]

    def middle(self) -> Run:
        runs = sorted(self.done(), key=lambda run: run.seconds / run.amount)
        return runs[(len(runs) - (0 if self.is_gabion() else 1)) // 2]

    def is_gabion(self) -> bool:
        """Or one of its rows of pipes."""
        return self.system.split(",")[0] == REFERENCE

    def times(self, other: Row | None, cost: Callable[[Run], float]) -> tuple[float, float, float] | None:
        """What it costs for the same amount, times what the other costs: the middle, the least, the most."""
        if other is None:
            return None
        pairs = [(cost(mine) / mine.amount, cost(theirs) / theirs.amount)
                 for mine, theirs in zip(self.runs, other.runs, strict=False) if mine and theirs]
        ratios = [mine / theirs for mine, theirs in pairs if theirs > 0]
        # Of two in the middle, the one that speaks less for gabion.
        middle = statistics.median_high if self.is_gabion() else statistics.median_low
        return (middle(ratios), min(ratios), max(ratios)) if ratios else None


def its_seconds(run: Run) -> float:
    return run.seconds


def with_sync(run: Run) -> float:
    return run.seconds + run.sync_seconds


def its_cpu(run: Run) -> float:
    return run.cpu_seconds


def rate(stage: Stage, run: Run) -> str:
    each = run.amount / run.seconds
    return f"{each / (1 << 20):,.0f} MiB/s" if stage.unit == "bytes" else f"{each:,.0f} {stage.unit}/s"


def cpu(stage: Stage, run: Run) -> str:
    if stage.unit == "bytes":
        return f"{run.cpu_seconds / run.amount * GIB:.2f} s/GiB"
    return f"{run.cpu_seconds / run.amount * 1e6:,.0f} us each"


def spread(values: tuple[float, float, float] | None) -> str:
    if values is None:
        return "-"
    middle, least, most = (f"{value:.2f}" for value in values)
    return middle if least == most else f"{middle} ({least} to {most})"


def seconds(row: Row) -> str:
    all_seconds = [run.seconds for run in row.done()]
    return spread((row.middle().seconds, min(all_seconds), max(all_seconds)))


def durable(row: Row) -> str:
    """What it promises, and what was seen: the time that a sync right afterwards took."""
    if row.is_limit:
        return row.facts.durable
    if not row.stage.writes:
        return "-"
    return f"{row.facts.durable}; a sync then took {row.middle().sync_seconds:.2f} s"


def remark(row: Row) -> str:
    """What its rate is to be read with."""
    remarks = sorted({run.remark for run in row.done() if run.remark})
    return f" ({' to '.join([remarks[0], *remarks[1:][-1:]])})" if remarks else ""


# What --brief leaves out.
LONG = ("seconds", "time and the sync after it, times gabion's", "CPU, times gabion's", "cached")


def table(stage: Stage, rows: list[Row], is_brief: bool) -> list[str]:
    first = next((row for row in rows if row.is_limit), None)
    named = {row.system: row for row in rows if row.is_limit}
    heading = f"time, times that of {first.system if first else 'a limit'}"
    if any(row.limit for row in rows):
        heading = "time, times that of its limit"
    reference = next((row for row in rows if row.system == REFERENCE), None)

    def ratio(row: Row, other: Row | None, cost: Callable[[Run], float]) -> str:
        return "1" if row is other else spread(row.times(other, cost))

    def limit_of(row: Row) -> Row | None:
        if row.is_limit and any(other.limit for other in rows):
            return None  # each is one of its own
        return named.get(row.limit, first) if row.limit else first

    columns: list[tuple[str, Callable[[Row], str]]] = [
        ("", lambda row: f"limit: {row.system}" if row.is_limit else row.system),
        ("rate", lambda row: rate(stage, row.middle()) + remark(row)),
        ("seconds", seconds),
        (heading, lambda row: ratio(row, limit_of(row), its_seconds))]
    if reference:
        columns.append(("time, times gabion's", lambda row: ratio(row, reference, its_seconds)))
        if stage.writes:
            columns.append(("time and the sync after it, times gabion's", lambda row: ratio(row, reference, with_sync)))
    columns.append(("CPU", lambda row: cpu(stage, row.middle())))
    if reference:
        columns.append(("CPU, times gabion's", lambda row: ratio(row, reference, its_cpu)))
    if any(row.syscalls_per_gib for row in rows):
        columns.append(("system calls per GiB",
                        lambda row: f"{row.syscalls_per_gib:,.0f}" if row.syscalls_per_gib else "-"))
    columns += [("memory", memory), ("durable", durable), ("encrypted", lambda row: row.facts.encrypted),
                ("verified", lambda row: row.facts.verified), ("cached", lambda row: row.facts.cached)]
    if is_brief:
        columns = [column for column in columns if column[0] not in LONG]
    lines = [f"**{stage.title}**", "", "| " + " | ".join(heading for heading, _ in columns) + " |",
             "| --- " * len(columns) + "|"]
    lines += ["| " + " | ".join(cell(row) for _, cell in columns) + " |" for row in rows]
    return [*lines, "", *flatness(stage, rows)]


def memory(row: Row) -> str:
    """The most of all runs, not that of the middle one."""
    most = max(run.memory_bytes for run in row.done())
    return f"{most / (1 << 20):,.0f} MiB" if most else "-"


def flatness(stage: Stage, rows: list[Row]) -> list[str]:
    """How far apart the rates for different lengths are, in the middle round, and those of the disk for the same."""
    if not stage.name.startswith("piped"):
        return []
    limits = {row.limit for row in rows if row.limit}
    own, disk = [row for row in rows if not row.is_limit], [row for row in rows if row.system in limits]
    # Rounds that are complete: both lines are about the same ones.
    rounds = [runs for runs in zip(*(row.runs for row in own + disk), strict=False) if all(runs)]
    said = [("these lengths", [runs[:len(own)] for runs in rounds]),
            ("the same lengths on the disk alone", [runs[len(own):] for runs in rounds])]
    apart = [(what, rates_apart(of)) for what, of in said]
    return [line for what, spreads in apart if spreads for line in
            (f"The fastest of {what} has {spread(spreads)} times the rate of the slowest.", "")]


def rates_apart(rounds: list[tuple[Run, ...]]) -> tuple[float, float, float] | None:
    rates = [[run.amount / run.seconds for run in runs] for runs in rounds if len(runs) > 1]
    apart = sorted(max(each) / min(each) for each in rates)
    return (statistics.median_high(apart), apart[0], apart[-1]) if apart else None


def by_stage(rows: list[Row]) -> dict[Stage, list[Row]]:
    stages: dict[Stage, list[Row]] = {}
    for row in rows:
        if row.done():
            stages.setdefault(row.stage, []).append(row)
    return stages


def markdown(
    rows: list[Row], about: list[str], absent: dict[str, str], failed: dict[str, str], is_brief: bool
) -> str:
    lines = [f"{line}  " for line in about] + [""]
    for stage, of_stage in by_stage(rows).items():
        lines += table(stage, of_stage, is_brief)
    lines += profiles([row for row in rows if row.cpu_shares and row.done()])
    for what, names in (("Not here", absent), ("Failed", failed)):
        if names:
            lines += [f"{what}: " + "; ".join(f"{name} ({why})" for name, why in sorted(names.items())) + "."]
    return "\n".join(lines)


def profiles(rows: list[Row]) -> list[str]:
    """On what CPU time is spent, and how much it is."""
    if not rows:
        return []
    groups = list(rows[0].cpu_shares)

    def cells(row: Row) -> list[str]:
        shares = [f"{row.cpu_shares.get(group, 0):.1%}" for group in groups]
        return [row.stage.name.replace("_", " "), cpu(row.stage, row.middle()), *shares]

    lines = [["", "CPU", *groups], ["---"] * (len(groups) + 2), *map(cells, rows)]
    return ["**what CPU time is spent on (sampled in a round of its own)**", "",
            *("| " + " | ".join(line) + " |" for line in lines), ""]


def as_json(
    rows: list[Row], about: list[str], absent: dict[str, str], failed: dict[str, str]
) -> dict[str, object]:
    return {
        "about": about,
        "absent": absent,
        "failed": failed,
        "rows": [{"stage": dataclasses.asdict(row.stage), "system": row.system, "is_limit": row.is_limit,
                  "limit": row.limit, "facts": dataclasses.asdict(row.facts),
                  "syscalls_per_gib": row.syscalls_per_gib, "cpu_shares": row.cpu_shares,
                  "runs": [dataclasses.asdict(run) if run else None for run in row.runs]} for row in rows],
    }


def merge(reports: list[dict]) -> tuple[list[Row], list[str], dict[str, str], dict[str, str]]:
    """Reports of several runs as one: the rounds of each follow those of the one before. They must be about the same:
    figures for different sizes have no middle."""
    rows: dict[tuple[str, str], Row] = {}
    about: list[str] = []
    absent: dict[str, str] = {}
    failed: dict[str, str] = {}
    rounds: dict[str, int] = {}
    stages: dict[str, Stage] = {}
    for said in reports:
        about += [line for line in said["about"] if line not in about]
        absent |= said["absent"]
        failed |= said["failed"]
        before = dict(rounds)
        for each in said["rows"]:
            stage = Stage(**each["stage"])
            known = stages.setdefault(stage.name, stage)
            if stage != known:
                both = " and ".join(f"`{each.title}` ({each.amount:,} {each.unit})" for each in (known, stage))
                raise ValueError(f"{stage.name} is not the same in all: {both}")
            row = rows.setdefault((stage.name, each["system"]), Row(stage, each["system"], each["is_limit"],
                                                                    each.get("limit", ""), Facts(**each["facts"])))
            # Who was not there earlier has no runs of those rounds.
            row.runs += [None] * (before.get(stage.name, 0) - len(row.runs))
            row.runs += [Run(**run) if run else None for run in each["runs"]]
            row.syscalls_per_gib = each["syscalls_per_gib"] or row.syscalls_per_gib
            row.cpu_shares = each.get("cpu_shares") or row.cpu_shares
            rounds[stage.name] = max(rounds.get(stage.name, 0), len(row.runs))
    return list(rows.values()), about, absent, failed


# Of the chart, in pixels.
WIDTH, LABEL, BAR, LINE = 900, 210, 470, 20
COLOURS = {"a limit of this machine": "#9aa5b1", REFERENCE: "#1f6feb", "another program": "#d29922"}


def chart(rows: list[Row], about: list[str]) -> str:
    """Bars of rates; in each stage the longest is the fastest."""
    limit, own, other = COLOURS
    parts, top = [], 62
    for number, (what, colour) in enumerate(COLOURS.items()):
        parts += [f'<rect x="{10 + 190 * number}" y="32" width="12" height="12" fill="{colour}"/>',
                  f'<text x="{28 + 190 * number}" y="42">{what}</text>']
    for stage, of_stage in by_stage(rows).items():
        fastest = max(row.middle().amount / row.middle().seconds for row in of_stage)
        parts.append(f'<text x="10" y="{top + 14}" font-weight="bold">{escape(stage.title)}</text>')
        top += 22
        for row in of_stage:
            run = row.middle()
            length = max(run.amount / run.seconds / fastest * BAR, 1)
            # Through pipes it is there once for each length: "gabion, 1 GiB".
            is_own = row.is_gabion()
            colour = COLOURS[limit if row.is_limit else own if is_own else other]
            said = f"{rate(stage, run)}, CPU {cpu(stage, run)}"
            parts += [
                f'<text x="{LABEL - 8}" y="{top + 13}" text-anchor="end">{escape(row.system)}</text>',
                f'<rect x="{LABEL}" y="{top + 2}" width="{length:.1f}" height="{LINE - 5}" fill="{colour}"/>',
                f'<text x="{LABEL + length + 6:.1f}" y="{top + 13}">{escape(said)}</text>']
            top += LINE
        top += 12
    head = (f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{top}" viewBox="0 0 {WIDTH} {top}" '
            'font-family="sans-serif" font-size="12">')
    return "\n".join([head, '<rect width="100%" height="100%" fill="#ffffff"/>',
                      f'<text x="10" y="20">{escape(about[0])}</text>', *parts, "</svg>", ""])


def machine(scratch: pathlib.Path) -> str:
    """When and on what."""
    model = next((line.split(":", 1)[1].strip() for line in read("/proc/cpuinfo").splitlines()
                  if line.startswith("model name")), platform.machine())
    memory = next(int(line.split()[1]) for line in read("/proc/meminfo").splitlines() if line.startswith("MemTotal"))
    mounts = [line.split()[1:3] for line in read("/proc/mounts").splitlines()]
    under = [(len(point), kind) for point, kind in mounts if (str(scratch) + "/").startswith(point.rstrip("/") + "/")]
    file_system = max(under)[1] if under else "an unknown file system"
    hardware = f"{os.cpu_count()} cores of {model}, {memory / (1 << 20):.0f} GiB"
    return f"{time.strftime('%-d %B %Y')}: {hardware}, Linux {platform.release()}, {file_system}"


def commit(folder: pathlib.Path) -> str:
    """Of the sources beside this tool; its binary is what was built last."""
    def git(*arguments: str) -> str:
        ran = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
        return ran.stdout.strip() if ran.returncode == 0 else ""

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "src", "Cargo.toml", "Cargo.lock")
        return (git("rev-parse", "--short=12", "HEAD") or "unknown") + (" and changes" if changed else "")
    except OSError:
        return "unknown"
