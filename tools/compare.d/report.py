"""From runs to a table and a chart.

Of each row the run with the middle time is shown, and the range of all. Ratios are taken inside each round, since what
a disk does drifts from minute to minute, and then the middle one of them is shown.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import platform
import statistics
import time
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
    facts: Facts
    # By round; nothing where the system failed.
    runs: list[Run | None] = dataclasses.field(default_factory=list)

    def done(self) -> list[Run]:
        return [run for run in self.runs if run]

    def middle(self) -> Run:
        runs = sorted(self.done(), key=lambda run: run.seconds / run.amount)
        return runs[(len(runs) - 1) // 2]

    def times(self, other: Row | None) -> tuple[float, float, float] | None:
        """Its time for the same amount, times the other's: the middle, the least, the most."""
        if other is None:
            return None
        pairs = [(mine, theirs) for mine, theirs in zip(self.runs, other.runs, strict=False) if mine and theirs]
        ratios = [mine.seconds / mine.amount * theirs.amount / theirs.seconds for mine, theirs in pairs]
        return (statistics.median_low(ratios), min(ratios), max(ratios)) if ratios else None


def rate(stage: Stage, run: Run) -> str:
    each = run.amount / run.seconds
    return f"{each / (1 << 20):,.0f} MiB/s" if stage.unit == "bytes" else f"{each:,.0f} {stage.unit}/s"


def cpu(stage: Stage, run: Run) -> str:
    if stage.unit == "bytes":
        return f"{run.cpu_seconds / run.amount * GIB:.2f} s/GiB"
    return f"{run.cpu_seconds / run.amount * 1e6:,.0f} us each"


def spread(values: tuple[float, float, float] | None, digits: int = 2) -> str:
    if values is None:
        return "-"
    middle, least, most = (f"{value:.{digits}f}" for value in values)
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


def table(stage: Stage, rows: list[Row]) -> list[str]:
    limit = next((row for row in rows if row.is_limit), None)
    reference = next((row for row in rows if row.system == REFERENCE), None)
    headings = ["", "rate", "seconds", f"time, times that of {limit.system if limit else 'a limit'}",
                "time, times gabion's", "CPU", "memory", "durable", "encrypted", "verified"]
    lines = [f"**{stage.title}**", "", "| " + " | ".join(headings) + " |", "| --- " * len(headings) + "|"]
    for row in rows:
        run = row.middle()
        cells = [
            f"limit: {row.system}" if row.is_limit else row.system, rate(stage, run), seconds(row),
            "1" if row is limit else spread(row.times(limit)),
            "1" if row is reference else spread(row.times(reference)),
            cpu(stage, run), f"{run.memory_bytes / (1 << 20):,.0f} MiB" if run.memory_bytes else "-", durable(row),
            row.facts.encrypted, row.facts.verified]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def by_stage(rows: list[Row]) -> dict[Stage, list[Row]]:
    stages: dict[Stage, list[Row]] = {}
    for row in rows:
        if row.done():
            stages.setdefault(row.stage, []).append(row)
    return stages


def markdown(rows: list[Row], about: list[str], absent: dict[str, str], failed: dict[str, str]) -> str:
    lines = [f"{line}  " for line in about] + [""]
    for stage, of_stage in by_stage(rows).items():
        lines += table(stage, of_stage)
    for what, names in (("Not here", absent), ("Failed", failed)):
        if names:
            lines += [f"{what}: " + "; ".join(f"{name} ({why})" for name, why in sorted(names.items())) + "."]
    return "\n".join(lines)


def as_json(
    rows: list[Row], about: list[str], absent: dict[str, str], failed: dict[str, str]
) -> dict[str, object]:
    return {
        "about": about,
        "absent": absent,
        "failed": failed,
        "rows": [{"stage": row.stage.name, "unit": row.stage.unit, "system": row.system, "is_limit": row.is_limit,
                  "facts": dataclasses.asdict(row.facts),
                  "runs": [dataclasses.asdict(run) if run else None for run in row.runs]} for row in rows],
    }


# Of the chart, in pixels.
WIDTH, LABEL, BAR, LINE = 900, 210, 470, 20
COLOURS = {"limit": "#9aa5b1", REFERENCE: "#1f6feb", "other": "#d29922"}


def chart(rows: list[Row], about: list[str]) -> str:
    """Bars of rates; in each stage the longest is the fastest."""
    parts, top = [], 34
    for stage, of_stage in by_stage(rows).items():
        fastest = max(row.middle().amount / row.middle().seconds for row in of_stage)
        parts.append(f'<text x="10" y="{top + 14}" font-weight="bold">{escape(stage.title)}</text>')
        top += 22
        for row in of_stage:
            run = row.middle()
            length = max(run.amount / run.seconds / fastest * BAR, 1)
            colour = COLOURS["limit" if row.is_limit else REFERENCE if row.system == REFERENCE else "other"]
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


def machine(scratch: pathlib.Path) -> list[str]:
    """When and on what."""
    model = next((line.split(":", 1)[1].strip() for line in read("/proc/cpuinfo").splitlines()
                  if line.startswith("model name")), platform.machine())
    memory = next(int(line.split()[1]) for line in read("/proc/meminfo").splitlines() if line.startswith("MemTotal"))
    mounts = [line.split()[1:3] for line in read("/proc/mounts").splitlines()]
    under = [(len(point), kind) for point, kind in mounts if (str(scratch) + "/").startswith(point.rstrip("/") + "/")]
    file_system = max(under)[1] if under else "an unknown file system"
    hardware = f"{os.cpu_count()} cores of {model}, {memory / (1 << 20):.0f} GiB"
    return [f"{time.strftime('%-d %B %Y')}: {hardware}, Linux {platform.release()}, {file_system}"]
