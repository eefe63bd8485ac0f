#!/usr/bin/env python3
"""N daemons on this machine, one of which sends: what the cost of a delivery, memory and CPU at rest make of N. DAEMONS in the
environment names other N: `DAEMONS="2 48" scripts/bench-mesh --only daemons`."""

import os
import subprocess
import time

from net import KIB, MIB, SCALE, Group, make, note, rig, row, run, visible, wait

COUNTS = [int(count) for count in os.environ.get("DAEMONS", "2 8 16 24 48" if SCALE == 1 else "2 4 8").split()]
FILES = 200 if SCALE == 1 else 50
REST = 20 if SCALE == 1 else 5

# Figure → what it is, how it is shown, goal.
ROWS = {
    "burst": (f"CPU per delivery of 4 KiB, {FILES} in a burst", lambda v: f"{v * 1000:.2f} ms", "≤ 0.4 ms, flat in N"),
    "single": ("CPU per delivery of 4 KiB, each when the one before is everywhere", lambda v: f"{v * 1000:.2f} ms", "≤ 0.4 ms, flat in N"),
    "rss": (f"largest resident set after {FILES} × 4 KiB in each of these ways", lambda v: f"{v / MIB:.0f} MiB", "≤ 64 MiB"),
    "idle": ("idle CPU per daemon", lambda v: f"{v * 100:.2f} %", "≤ 0.2 % at 16, ≤ 0.5 % at 48"),
    "rss_all": ("largest resident set after 16 MiB to all", lambda v: f"{v / MIB:.0f} MiB", "≤ 64 MiB"),
    "all": ("16 MiB to all, cp's start → visible at all", lambda v: f"{v:.2f} s", "≤ 1.5 x (N − 1) x the time for one"),
}


def cpu(nodes):
    return rig.cpu_of([node.pid for node in nodes])


def arrived(nodes, names):
    visible([node.inbox(*name) for node in nodes[1:] for name in names])


def settled(nodes):
    wait(nodes[0].idle, "receipts", 0.05)


def burst(nodes):
    source = rig.make_tree(os.path.join(nodes[0].root, "burst"), 1, FILES, 4 * KIB)
    before = cpu(nodes)
    run("cp", "-r", source, nodes[0].outbox("burst"))
    arrived(nodes, [("burst", "d0", f"f{number}") for number in range(FILES)])
    settled(nodes)
    used = cpu(nodes) - before
    for node in nodes[1:]:
        rig.same(source, node.inbox("burst"))
    return used / FILES / (len(nodes) - 1)


def single(nodes):
    before = cpu(nodes)
    for number in range(FILES):
        with open(nodes[0].outbox(f"single{number}"), "wb") as file:
            file.write(os.urandom(4 * KIB))
        arrived(nodes, [(f"single{number}",)])
    return (cpu(nodes) - before) / FILES / (len(nodes) - 1)


def idle(nodes):
    time.sleep(5)
    before = cpu(nodes)
    time.sleep(REST)
    return (cpu(nodes) - before) / REST / len(nodes)


def to_all(nodes):
    source = make(os.path.join(nodes[0].root, "large"), 16 * MIB)
    begun = time.monotonic()
    run("cp", source, nodes[0].outbox("large"), timeout=rig.LIMIT)
    arrived(nodes, [("large",)])
    took = time.monotonic() - begun
    for node in nodes[1:]:
        rig.same(source, node.inbox("large"))
    return took


def measure(count):
    with Group(None, range(count)) as nodes:
        most = lambda: max(node.rss_max() for node in nodes)
        found = {"burst": burst(nodes), "single": single(nodes), "rss": most(), "idle": idle(nodes)}
        return found | {"all": to_all(nodes), "rss_all": most()}


def main():
    found, failed = {}, []
    for count in COUNTS:
        begun = time.monotonic()
        try:
            with rig.limit(900, f"{count} daemons"):
                found[count] = measure(count)
        except (SystemExit, rig.Late, AssertionError, OSError, subprocess.SubprocessError) as error:
            if isinstance(error, SystemExit) and isinstance(error.code, int):
                raise
            failed.append(f"{count} daemons: {error}")
            note(f"FAILED {failed[-1]}")
            continue
        told = ", ".join(f"{figure} {ROWS[figure][1](value)}" for figure, value in found[count].items())
        note(f"{count} daemons: {told}; {time.monotonic() - begun:.0f} s")
    for figure, (what, shown, goal) in ROWS.items():
        row(f"N daemons: {what}", ", ".join(f"{count}: {shown(of[figure])}" for count, of in found.items()), goal)
    if failed:
        raise SystemExit("; ".join(failed))


main()
