#!/usr/bin/env python3
"""Priorities over a shaped link with real daemons; a member killed without a word; and what the tests' lossy, long and
silent forwarder gives (`cargo nextest`, where there is cargo)."""

import json
import os
import shutil
import subprocess
import time

from net import BASE, BIN, GIB, KIB, MIB, SCALE, Group, Net, make, note, percentile, row, run, visible, wait

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
RATE, QUEUE = "100mbit", "64kb"
CONTENT = os.urandom(4 * KIB)


def priority(node, name, level, to=None):
    where = node.outbox(name)
    os.mkdir(where)
    os.setxattr(where, "user.meshbox.priority", level.encode())
    if to:
        os.setxattr(where, "user.meshbox.to", to.encode())


def latency(sender, receivers, tag, count):
    """Seconds from close to visible of one small critical file after the other, for each receiver."""
    times = [[] for _ in receivers]
    for number in range(count):
        name = f"{tag}{number}"
        with open(sender.outbox("ops", name), "wb") as file:
            file.write(CONTENT)
        begun, missing = time.monotonic(), set(range(len(receivers)))
        while missing:
            for n in list(missing):
                if os.path.exists(receivers[n].inbox("ops", name)):
                    times[n].append(time.monotonic() - begun)
                    missing.remove(n)
            time.sleep(0.0003)
            if time.monotonic() - begun > 60:
                raise SystemExit(f"{name} did not arrive within 60 s")
        time.sleep(0.02)
    return times


def shown(times):
    return f"p50 {percentile(times, 0.5) * 1000:.1f} ms, p90 {percentile(times, 0.9) * 1000:.1f} ms, worst {max(times) * 1000:.1f} ms"


def priorities():
    size, count = GIB // SCALE, 100
    source = make(os.path.join(BASE, "source"), size)
    part, other = (make(os.path.join(BASE, name), 32 * MIB) for name in ("part", "other"))
    with Net(3) as net, Group(net, range(3)) as (alder, birch, cedar):
        priority(alder, "ops", "critical")
        priority(alder, "bulk", "bulk", "birch")
        net.shape(0, RATE, QUEUE)
        latency(alder, [birch, cedar], "warm", 10)
        idle = latency(alder, [birch, cedar], "idle", count)
        begun = time.monotonic()
        run("cp", part, alder.outbox("bulk", "alone"), timeout=600)
        visible([birch.inbox("bulk", "alone")])
        alone = time.monotonic() - begun
        run("cp", source, alder.outbox("bulk", "large"), timeout=600)
        before = birch.counts()["bytes_received"]
        wait(lambda: birch.counts()["bytes_received"] > before + 4 * MIB, "bulk is under way", 0.1)
        busy = latency(alder, [birch, cedar], "busy", count)
        if os.path.exists(birch.inbox("bulk", "large")):
            raise SystemExit("the bulk transfer ended too early")
        for n, name in enumerate(["the receiver of bulk", "another peer over the same interface"]):
            ratio = percentile(busy[n], 0.5) / percentile(idle[n], 0.5)
            worse = percentile(busy[n], 0.9) / percentile(idle[n], 0.9)
            row(f"critical 4 KiB to {name}, idle", shown(idle[n]))
            row(f"the same beside {size // MIB} MiB of bulk over {RATE}, queue {QUEUE}",
                f"{shown(busy[n])}: {ratio:.1f} x (p90 {worse:.1f} x)", "≤ 3 x of idle")
        visible([birch.inbox("bulk", "large")], 0.05)
        run("cmp", source, birch.inbox("bulk", "large"), timeout=600)
        begun = time.monotonic()
        shutil.copyfile(other, alder.outbox("bulk", "loaded"))
        number = 0
        while not os.path.exists(birch.inbox("bulk", "loaded")):
            with open(alder.outbox("ops", f"load{number}"), "wb") as file:
                file.write(CONTENT)
            number += 1
            time.sleep(0.005)
            if time.monotonic() - begun > 300:
                raise SystemExit("bulk starves under critical load")
        took = time.monotonic() - begun
        row(f"32 MiB of bulk under {number / took:.0f} critical files a second", f"{took:.1f} s, alone {alone:.1f} s", "arrives")
        begun = time.monotonic()
        birch.kill()
        wait(lambda: not any(p["connected"] for p in json.loads(run(BIN, "peers", "--json", "--state", alder.state))
                             if p["name"] == "birch"), "noticed", 0.05, 60)
        row("a member killed without a word is noticed after", f"{time.monotonic() - begun:.1f} s", "≤ 10 s")
    os.unlink(source)
    os.unlink(part)
    os.unlink(other)


def forwarder():
    if not shutil.which("cargo"):
        note("no cargo: the forwarder's figures are left out")
        return
    command = ["cargo", "nextest", "run", "--lib", "--run-ignored", "only", "--no-capture", "measure_links"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1500)
    for line in done.stdout.splitlines():
        if line.startswith("| "):
            print(line, flush=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])


priorities()
forwarder()
