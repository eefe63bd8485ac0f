"""What scripts/bench found: medians of the rounds, one table, and all figures for JSON."""

import os
import platform
import subprocess
import time

import rig
from rig import MIB, median

# What is told of every load below its own figures.
COSTS = (("cpu", "… CPU of cp and all ends", ""), ("rss", "… largest resident set", ""))


class Report:
    def __init__(self, ways, args, where):
        self.ways, self.goals = ways, not args.quick
        self.lines, self.samples, self.rows = [], {}, []
        self.about = {
            "meshbox": rig.run(rig.BIN, "--version").strip(), "commit": commit(), "date": time.strftime("%Y-%m-%d"),
            "machine": {"cpus": os.cpu_count(), "cpu": cpu_model(), "kernel": platform.release()},
            "where": where, "rounds": args.rounds, "quick": args.quick,
        }

    def load(self, load):
        """Takes the lines of a load into the table."""
        for figure, what, goal in (*load.figures, *COSTS):
            self.lines.append((load.name, figure, what, goal if self.goals or not load.goals_scale else ""))

    def sample(self, load, way, figures):
        for figure, value in figures.items():
            if value is not None:
                self.samples.setdefault((load, figure), {}).setdefault(way, []).append(value)

    def row(self, what, figure, goal=""):
        self.rows.append((what, figure, goal if self.goals else ""))
        print(f"  {what:<72} {figure:<48} {goal}", flush=True)

    def medians(self, load, figure):
        return {way: median(rounds) for way, rounds in self.samples.get((load, figure), {}).items()}

    def table(self):
        ways = [way for way in self.ways if any(way in found for found in self.samples.values())]
        print_table(["median of the rounds", *[self.ways[way].title for way in ways], "Meshbox / TCP", "goal"],
                    [self.cells(ways, *line) for line in self.lines if self.medians(*line[:2])])
        print_table(["Meshbox alone", "measured", "goal"], self.rows)

    def cells(self, ways, load, figure, what, goal):
        found = self.medians(load, figure)
        both = found.get("meshbox"), found.get("tcp")
        ratio = f"{both[0] / both[1]:.2f} x" if all(both) else ""
        return [what, *[shown(figure, found.get(way)) for way in ways], ratio, goal]

    def found(self):
        """All of it, for JSON: seconds and bytes."""
        lines = [{"load": load, "figure": figure, "what": what, "unit": "bytes" if figure == "rss" else "s", "goal": goal,
                  "ways": {way: {"median": median(rounds), "rounds": rounds}
                           for way, rounds in self.samples.get((load, figure), {}).items()}}
                 for load, figure, what, goal in self.lines]
        rows = [dict(zip(("what", "measured", "goal"), row)) for row in self.rows]
        titles = {way: self.ways[way].title for way in self.ways}
        return self.about | {"titles": titles, "lines": lines, "meshbox_alone": rows}


def print_table(head, rows):
    """A table in Markdown that can be read as it is."""
    if not rows:
        return
    widths = [max(len(row[n]) for row in [head, *rows]) for n in range(len(head))]
    print()
    for row in [head, ["-" * width for width in widths], *rows]:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |")


def shown(figure, value):
    if value is None:
        return "-"
    return f"{value / MIB:.0f} MiB" if figure == "rss" else duration(value)


def duration(seconds):
    """Three digits: no figure here means more."""
    for unit, size in (("s", 1), ("ms", 1e-3)):
        value = seconds / size
        if value >= 0.9995:
            return f"{value:,.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {unit}"
    return f"{seconds * 1e6:.0f} µs"


def commit():
    """The commit that was built, with a mark if files differ from it."""
    done = subprocess.run(["git", "describe", "--always", "--dirty", "--exclude=*"], cwd=rig.ROOT, capture_output=True, text=True)
    return done.stdout.strip()


def cpu_model():
    with open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()
