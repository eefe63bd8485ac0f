#!/usr/bin/env python3
"""Compares Meshbox with other ways from one directory to others, and measures it alone. All ends are on this machine.

Every round brings the same files over each way in turn, with fresh processes, and compares every byte:

  native      cp, into the receivers' directories
  tcp         one TCP connection, SHA-256 at both ends (scripts/bench.d/tcp.py)
  iroh        one stream of one iroh connection, SHA-256 at both ends (scripts/bench.d/iroh_stream.rs)
  rsync       inotifywait, and rsync to a daemon
  syncthing   without relays, discovery, NAT, reporting; watcher delay 1 s
  meshbox     default settings

Time runs from cp into the outbox; tcp and iroh, which do not watch it, are told when cp has returned. The loads are latency,
large, paced, many, medium and fanout (to three). Of Meshbox alone: steps (what a small file waits for), native (against a plain
directory), idle, crowded (small operations beside a large bundle), and by name only soak (200,000 bundles).
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback

sys.dont_write_bytecode = True

import alone
import chart
import rig
from loads import LOADS
from report import Report, shown
from rig import GIB, MIB
from ways import WAYS

COMPARED = [way for way in WAYS if way != "meshbox_settle_0"]


def arguments():
    parts = [*LOADS, *alone.PARTS]
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(part for part in parts if part != "soak"), help="parts to run, separated by commas")
    parser.add_argument("--ways", default=",".join(COMPARED), help="ways to compare, separated by commas")
    parser.add_argument("--quick", action="store_true", help="a tenth of the sizes, under 3 minutes")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the comparison (3)")
    parser.add_argument("--files", type=int, help="files in the bundle of `crowded` (100,000; 2,000 if quick)")
    parser.add_argument("--disk", "--dir", metavar="DIR", help="where state, mounts and input lie (a tmpfs)")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    parser.add_argument("--svg", metavar="FILE", help="draw the comparison there")
    parser.add_argument("--draw", metavar="JSON", help="measure nothing, draw what --json wrote earlier")
    parser.add_argument("--no-build", action="store_true", help="use the programs that are there")
    args = parser.parse_args()
    args.only, args.ways = args.only.split(","), args.ways.split(",")
    for given, known, what in ((args.only, parts, "part"), (args.ways, COMPARED, "way")):
        if unknown := set(given) - set(known):
            parser.error(f"no {what} {', '.join(sorted(unknown))}; there are: {', '.join(known)}")
    if args.draw and not args.svg:
        parser.error("--draw needs --svg")
    args.scale = 10 if args.quick else 1
    args.files = args.files or (2_000 if args.quick else 100_000)
    return args


def install(ways):
    """Installs what the ways need, or says how to."""
    missing = sorted({package for way in ways for program, package in WAYS[way].needs.items() if not shutil.which(program)})
    if not missing:
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        sys.exit(f"missing: {' '.join(missing)}\nrun:  sudo apt-get update && sudo apt-get install -y --no-install-recommends "
                 f"{' '.join(missing)}\nor name fewer ways with --ways")
    print(f"installing: {' '.join(missing)}", flush=True)
    env = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    subprocess.run(["apt-get", "update", "-qq"], check=True, timeout=600)
    subprocess.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing], check=True, timeout=600,
                   env=env, stdout=subprocess.DEVNULL)


def build():
    subprocess.run(["cargo", "build", "--release", "--locked", "--quiet", "--bin", "meshbox", "--example", "iroh_stream"],
                   cwd=rig.ROOT, check=True)


@contextlib.contextmanager
def place(args):
    """A fresh directory for everything, and how to call where it lies."""
    need = (8 * GIB if not args.quick else GIB)
    mounted = None
    if args.disk:
        base, where = tempfile.mkdtemp(prefix="meshbox-bench-", dir=args.disk), "on disk"
    elif rig.shm_has(need):
        base, where = tempfile.mkdtemp(prefix="meshbox-bench-", dir="/dev/shm"), "on tmpfs"
    elif os.geteuid() == 0:
        base, where = tempfile.mkdtemp(prefix="meshbox-bench-"), "on tmpfs"
        rig.run("mount", "-t", "tmpfs", "-o", "mode=0700,size=80%", "tmpfs", base)
        mounted = base
    else:
        sys.exit(f"/dev/shm has no room for {need // GIB} GiB: name another place with --disk")
    # Whoever called us takes away what we could not.
    if "BENCH_PLACE" in os.environ:
        with open(os.environ["BENCH_PLACE"], "w") as file:
            file.write(base)
    try:
        if (free := shutil.disk_usage(base).free) < need:
            sys.exit(f"{base} has {free // MIB:,} MiB free, {need // MIB:,} are needed")
        yield base, where
    finally:
        left = [path for path in rig.mounted_below(base) if path != mounted]
        if left:
            print(f"still mounted: {' '.join(left)}", file=sys.stderr)
        elif mounted:
            rig.run("umount", "-l", mounted)
        if not left:
            shutil.rmtree(base, ignore_errors=True)


class Bench:
    def __init__(self, args, base, where):
        self.args, self.base, self.failed = args, base, []
        self.report = Report(WAYS, args, where)

    @contextlib.contextmanager
    def attempt(self, seconds, what):
        """What fails is noted, and the rest is measured all the same."""
        try:
            with rig.limit(seconds, what):
                yield
        except (SystemExit, rig.Late, subprocess.SubprocessError, AssertionError, OSError, KeyError, ValueError) as error:
            if isinstance(error, SystemExit) and isinstance(error.code, int):
                raise
            self.failed.append(what)
            print(f"  FAILED {what}: {error} {getattr(error, 'stderr', '') or ''}", flush=True)
            if not isinstance(error, (SystemExit, AssertionError, rig.Late, subprocess.SubprocessError)):
                traceback.print_exc()

    def compare(self):
        loads = [LOADS[name](self.base, self.args.scale) for name in LOADS if name in self.args.only]
        for load in loads:
            self.report.load(load)
        ways = list(self.args.ways)
        if any(load.name == "latency" for load in loads) and "meshbox" in ways:
            ways.append("meshbox_settle_0")
        for number in range(self.args.rounds if loads else 0):
            # Each round begins with another way, so that none always runs in the wake of the same one.
            first = number % len(ways)
            for way in ways[first:] + ways[:first]:
                for receivers in sorted({load.receivers for load in loads}):
                    mine = [load for load in loads if load.receivers == receivers and fits(load, WAYS[way])]
                    if mine:
                        with self.attempt(4 * rig.LIMIT, f"{way}, round {number + 1}"):
                            self.round(number, way, receivers, mine)

    def round(self, number, name, receivers, loads):
        with WAYS[name](self.base, receivers) as way:
            for load in loads:
                with self.attempt(rig.LIMIT, f"{load.name} by {name}, round {number + 1}"):
                    way.forget_rss()
                    figures = load.run(way)
                    self.report.sample(load.name, name, figures)
                    told = "  ".join(f"{key} {shown(key, value)}" for key, value in figures.items())
                    print(f"  round {number + 1}  {name:<17} {load.name:<8} {told}", flush=True)
                    way.rest()

    def measure_alone(self):
        for name in self.args.only:
            if name in alone.PARTS:
                print(f"{name}:", flush=True)
                part, seconds = alone.PARTS[name]
                more = {"files": self.args.files} if name == "crowded" else {}
                with self.attempt(seconds, name):
                    part(self.base, self.args.scale, self.report.row, **more)


def fits(load, way):
    if way.name == "meshbox_settle_0":
        return load.name == "latency"
    return load.fits(way)


def write(args, found):
    if args.svg:
        with open(args.svg, "w") as file:
            file.write(chart.draw(found))


def main():
    args = arguments()
    rig.ends_when_told()
    rig.ends_with_parent(signal.SIGTERM)
    if args.draw:
        with open(args.draw) as file:
            write(args, json.load(file))
        return
    install(args.ways if set(args.only) & set(LOADS) else [])
    if not args.no_build:
        build()
    with place(args) as (base, where):
        bench = Bench(args, base, where)
        bench.compare()
        bench.measure_alone()
        bench.report.table()
        found = bench.report.found()
        if args.json:
            with open(args.json, "w") as file:
                file.write(json.dumps(found, indent=1) + "\n")
        write(args, found)
    if bench.failed:
        sys.exit(f"failed: {'; '.join(bench.failed)}")


if __name__ == "__main__":
    main()
