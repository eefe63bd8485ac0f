#!/usr/bin/env python3
"""Many sources: receivers behind one uplink help each other. Delta: what a change in a large file moves."""

import os
import time

from net import BASE, GIB, MIB, SCALE, Group, Net, make, note, row, run, visible

UPLINK = "100mbit"


def spread(net, source, receivers, shaped):
    """Seconds from close to visible everywhere, bytes that left the origin, and the greatest memory."""
    with Group(net, range(receivers + 1)) as nodes:
        for n in range(shaped):
            net.shape(n, UPLINK)
        before = net.sent(0)
        begun = time.monotonic()
        run("cp", source, nodes[0].outbox("f"), timeout=600)
        visible([node.inbox("f") for node in nodes[1:]], 0.05)
        took = time.monotonic() - begun
        sent = net.sent(0) - before
        rss = max(node.rss_max() for node in nodes)
        for node in nodes[1:]:
            run("cmp", source, node.inbox("f"), timeout=600)
            counts = node.counts()
            note(f"{node.name}: {counts['bytes_received'] // MIB} MiB received, {counts['bytes_twice'] // MIB} in vain,"
                 f" {counts['bytes_sent'] // MIB} given to others")
        for n in range(shaped):
            net.unshape(n)
        return took, sent, rss


def uplink():
    size = 256 * MIB // SCALE
    label = f"{size // MIB} MiB over a {UPLINK} uplink"
    source = make(os.path.join(BASE, "source"), size)
    with Net(5) as net:
        alone, sent, _ = spread(net, source, 1, 1)
        row(f"{label} to one receiver, cp start → visible", f"{alone:.1f} s")
        row("of it left the origin", f"{sent / size:.2f} x the file")
        for shaped, what in [(1, ""), (5, ", every receiver with such an uplink too")]:
            four, sent, rss = spread(net, source, 4, shaped)
            row(f"{label} to four receivers{what}", f"{four:.1f} s, {four / alone:.2f} x", "≤ 1.5 x of one receiver")
            row("of it left the origin", f"{sent / size:.2f} x the file")
            row("RSS at most, of five", f"{rss / MIB:.0f} MiB", "≤ 64 MiB")
    os.unlink(source)


def delta():
    size = GIB // SCALE
    source = make(os.path.join(BASE, "source"), size)
    with Group(None, range(2)) as (alder, birch):
        run("cp", source, alder.outbox("f"), timeout=600)
        visible([birch.inbox("f")], 0.05)
        before, ino = birch.counts()["bytes_received"], os.stat(birch.inbox("f")).st_ino
        begun = time.monotonic()
        with open(alder.outbox("f"), "r+b") as file:
            file.seek(size // 3)
            file.write(os.urandom(MIB))
        while os.stat(birch.inbox("f")).st_ino == ino:
            time.sleep(0.05)
        took = time.monotonic() - begun
        moved = birch.counts()["bytes_received"] - before
        run("cmp", alder.outbox("f"), birch.inbox("f"), timeout=600)
        label = f"1 MiB changed in place in {size // MIB} MiB"
        row(f"{label}, bytes moved", f"{moved / MIB:.1f} MiB", "< 16 MiB")
        row(f"{label}, write → visible", f"{took:.1f} s")
    os.unlink(source)


uplink()
delta()
