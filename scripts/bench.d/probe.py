#!/usr/bin/env python3
"""Small operations in both trees of a mount in a tight loop, for the line `crowded` of scripts/bench: `probe.py MOUNT`.

Prints `ready`, goes on until a line comes on standard input, then prints what each operation took as JSON. In the inbox it
looks at `supply/d0`, and removes the other files of `supply`, one in ten turns; in the outbox it writes and removes files of
its own in a directory of its own.
"""

import array
import gc
import json
import os
import select
import sys
import time

mount = sys.argv[1]
inbox = os.path.join(mount, "inbox", "supply")
outbox = os.path.join(mount, "outbox", f"probe{os.getpid()}")
shown = os.path.join(inbox, "d0")
# When each operation began and how long it took, in turn, in ns.
times = {tree: {op: array.array("Q") for op in ("rm", "stat", "write", "ls")} for tree in ("inbox", "outbox")}


def timed(tree, op, call, *args):
    begun = time.perf_counter_ns()
    result = call(*args)
    times[tree][op].extend((begun, time.perf_counter_ns() - begun))
    return result


def write(path):
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    os.write(file, b"a small file\n")
    os.close(file)


def consumables():
    """Files of the inbox that may go."""
    for name in sorted(os.listdir(inbox)):
        if name != "d0":
            for file in sorted(os.listdir(os.path.join(inbox, name))):
                yield os.path.join(inbox, name, file)


def told_to_stop():
    return select.select([sys.stdin], [], [], 0)[0]


def at(samples, share):
    return sorted(samples)[min(len(samples) - 1, int(len(samples) * share))] / 1e9


def summary(samples):
    """Seconds. The bundle is published in a part of the time, so the worst second is told by itself."""
    if not samples:
        return None
    begun, took = samples[0::2], samples[1::2]
    seconds = {}
    for when, took_then in zip(begun, took):
        seconds.setdefault(when // 10**9, []).append(took_then)
    return {"p50": at(took, 0.5), "p99": at(took, 0.99), "second": max(at(second, 0.99) for second in seconds.values()),
            "worst": max(took) / 1e9, "count": len(took)}


os.mkdir(outbox)
for number in range(20):
    write(os.path.join(outbox, f"kept{number}"))
names = sorted(os.listdir(shown))
left = consumables()
gc.disable()
print("ready", flush=True)
turn = 0
while not told_to_stop():
    turn += 1
    timed("inbox", "stat", os.stat, os.path.join(shown, names[turn % len(names)]))
    timed("inbox", "ls", os.listdir, shown)
    if turn % 10 == 0 and (path := next(left, None)):
        timed("inbox", "rm", os.unlink, path)
    path = os.path.join(outbox, f"f{turn}")
    timed("outbox", "write", write, path)
    timed("outbox", "stat", os.stat, path)
    timed("outbox", "ls", os.listdir, outbox)
    timed("outbox", "rm", os.unlink, path)
print(json.dumps({tree: {op: summary(samples) for op, samples in ops.items()} for tree, ops in times.items()}), flush=True)
