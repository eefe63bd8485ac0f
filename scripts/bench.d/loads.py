"""What scripts/bench brings over every way: each load gives its figures of one round, and compares every byte.

`seen` is from the start of cp until all of it is in every inbox, `cp` the part until cp's return, `after` the rest.
Seconds and bytes; `cpu` is that of cp and of all processes of all ends, `rss` the largest resident set of one process.
"""

import os
import random
import time

import rig
from rig import GIB, KIB, LOOK, MIB, percentile, same


class Load:
    name = ""
    receivers = 1
    figures = ()  # (figure, what it is, goal of Meshbox)
    goals_scale = True  # whether the goals are for the full size only

    def __init__(self, base, scale):
        self.base, self.scale = base, scale
        self.prepare()

    def prepare(self):
        pass

    def fits(self, way):
        return True

    def path(self, name):
        return os.path.join(self.base, name)


class Latency(Load):
    """Small files, one after the other. What cp does after its close hides a part of the way; so of Meshbox there is a
    second series of files that the bench writes itself."""

    name = "latency"
    figures = (
        ("p50", "4 KiB, cp's return → visible, p50", "≤ 4 ms; settle = 0: ≤ 2 ms"), ("p99", "… p99", "≤ 15 ms"),
        ("close50", "4 KiB, close → visible, p50", ""), ("close99", "… p99", ""))
    goals_scale = False

    def fits(self, way):
        return way.probes > 0

    def run(self, way):
        cpu, count = way.cpu(), max(3, way.probes // self.scale)
        times, used = self.series(way, count, "cp", way.put)
        figures = {"p50": percentile(times, 0.5), "p99": percentile(times, 0.99), "cpu": (way.cpu() - cpu + used) / count}
        if way.name.startswith("meshbox"):
            times, _ = self.series(way, count, "close", way.write)
            figures |= {"close50": percentile(times, 0.5), "close99": percentile(times, 0.99)}
        return figures | {"rss": way.rss_max()}

    def series(self, way, count, kind, put):
        times, cpu = [], 0
        for number in range(count):
            source, name = self.path("small"), f"{kind}{number}"
            with open(source, "wb") as file:
                file.write(random.randbytes(4 * KIB))
            closed, used = put(source, name)
            way.arrive({"": {name: 4 * KIB}}, LOOK)
            times.append(time.monotonic() - closed)
            cpu += used
            for inbox in way.inboxes:
                with open(source, "rb") as here, open(os.path.join(inbox, name), "rb") as there:
                    assert here.read() == there.read(), f"{name} differs"
        return times, cpu


class Copy(Load):
    """A file or tree that cp puts into the outbox."""

    def run(self, way):
        cpu, begun = way.cpu(), time.monotonic()
        closed, used = way.put(self.source, self.name)
        way.arrive(self.tree)
        ended = time.monotonic()
        cpu = way.cpu() - cpu + used
        for inbox in way.inboxes:
            same(self.source, os.path.join(inbox, self.name))
        return {"seen": ended - begun, "cp": closed - begun, "after": ended - closed, "cpu": cpu, "rss": way.rss_max()}

    def file(self, size):
        self.source, self.size = rig.make(self.path(self.name), size), size
        self.tree = {"": {self.name: size}}
        return f"{size // MIB:,} MiB" if size % GIB else f"{size // GIB} GiB"

    def files(self, dirs, each, size):
        self.source = rig.make_tree(self.path(self.name), dirs, each, size)
        self.tree = {f"{self.name}/d{d}": {f"f{f}": size for f in range(each)} for d in range(dirs)}


class Large(Copy):
    name = "large"

    def prepare(self):
        label = self.file(GIB // self.scale // MIB * MIB)
        self.figures = (("seen", f"{label}, cp's start → visible", "≤ 1.85 x of TCP, 4.2 s"), ("cp", "… cp alone", ""))


class Paced(Copy):
    """A file that is written slowly: what is left to do at its close."""

    name = "paced"
    goals_scale = False
    rate = 100_000_000

    def prepare(self):
        label = self.file(GIB // self.scale // MIB * MIB)
        self.figures = (("after", f"{label} written at 100 MB/s, close → visible", "≤ 150 ms"),)

    def fits(self, way):
        return way.watches

    def run(self, way):
        cpu, begun, written = way.cpu(), time.monotonic(), 0
        with open(self.source, "rb") as source, open(os.path.join(way.outbox, self.name), "wb", buffering=0) as file:
            while piece := source.read(MIB):
                file.write(piece)
                written += len(piece)
                time.sleep(max(0, begun + written / self.rate - time.monotonic()))
        closed = time.monotonic()
        way.announce(self.name)
        way.arrive(self.tree, 0.001)
        ended = time.monotonic()
        cpu = way.cpu() - cpu
        for inbox in way.inboxes:
            same(self.source, os.path.join(inbox, self.name))
        return {"after": ended - closed, "cpu": cpu, "rss": way.rss_max()}


class Many(Copy):
    name = "many"

    def prepare(self):
        self.count = 10_000 // self.scale
        self.files(100 // self.scale, 100, 4 * KIB)
        self.figures = (
            ("seen", f"{self.count:,} × 4 KiB in {100 // self.scale} directories, cp's start → all visible", "≤ 2.2 s"),
            ("cp", "… cp alone", "≤ 1.8 s"), ("each", "… CPU of all ends for a file", "≤ 350 µs"))

    def run(self, way):
        figures = super().run(way)
        return figures | {"each": figures["cpu"] / self.count}


class Medium(Copy):
    name = "medium"

    def prepare(self):
        count = 200 // self.scale
        self.files(1, count, MIB)
        self.figures = (("seen", f"{count} × 1 MiB, cp's start → all visible", "≤ 0.8 s"),)


class Fanout(Copy):
    name, receivers = "fanout", 3

    def prepare(self):
        label = self.file(256 * MIB // self.scale // MIB * MIB)
        self.figures = (("seen", f"{label} to three, cp's start → visible at all", "≤ 2.3 s"),)


LOADS = {load.name: load for load in (Latency, Large, Paced, Many, Medium, Fanout)}
