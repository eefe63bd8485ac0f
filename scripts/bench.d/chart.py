"""Draws what scripts/bench found as one SVG: a panel for each load, a bar for each way, on a scale of its own."""

from html import escape

from report import duration

# Load, figure.
PANELS = (
    ("latency", "p50"), ("large", "seen"), ("paced", "after"),
    ("many", "seen"), ("medium", "seen"), ("fanout", "seen"),
)
COLUMNS, WIDTH = 2, 880  # panels beside each other; pixels
PAD, LABEL, VALUE = 24, 136, 66  # around panels; for names before bars; for figures behind them
BAR, GAP, HEAD, TOP, FOOT = 13, 6, 30, 62, 40

# Both schemes are set on a ground of their own, so that the chart can be read on any page. Light, dark.
COLOURS = {
    "ground": ("#ffffff", "#0d1117"), "text": ("#1f2328", "#e6edf3"), "faint": ("#59636e", "#9198a1"),
    "line": ("#d1d9e0", "#3d444d"), "bar": ("#a9b4c0", "#59636e"), "ours": ("#0969da", "#4493f8"),
}


def style():
    def rules(scheme):
        colour = {name: pair[scheme] for name, pair in COLOURS.items()}
        return (f".ground{{fill:{colour['ground']};stroke:{colour['line']}}}.text{{fill:{colour['text']}}}"
                f".faint{{fill:{colour['faint']}}}.bar{{fill:{colour['bar']}}}.ours{{fill:{colour['ours']}}}")

    font = "text{font:12px system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif}.title{font-size:16px}.title,.b{font-weight:600}"
    return f"<style>{font}{rules(0)}@media (prefers-color-scheme:dark){{{rules(1)}}}</style>"


def text(x, y, what, kind="text", anchor="start"):
    return f'<text class="{kind}" x="{x:.0f}" y="{y:.1f}" text-anchor="{anchor}">{escape(what)}</text>'


def panel(x, y, width, line, titles, ways):
    parts = [text(x, y, line["what"], "text b")]
    found = {way: line["ways"][way]["median"] for way in ways if way in line["ways"]}
    longest = max(found.values())
    room = width - LABEL - VALUE
    for number, way in enumerate(ways):
        top = y + HEAD - BAR + number * (BAR + GAP)
        middle, ours = top + BAR - 2.5, way == "meshbox"
        parts.append(text(x + LABEL - 8, middle, titles[way], "text b" if ours else "faint", "end"))
        if way not in found:
            parts.append(text(x + LABEL, middle, "–", "faint"))
            continue
        length = max(1.5, room * found[way] / longest)
        kind = "ours" if ours else "bar"
        parts.append(f'<rect class="{kind}" x="{x + LABEL:.0f}" y="{top:.1f}" width="{length:.1f}" height="{BAR}" rx="2"/>')
        parts.append(text(x + LABEL + length + 6, middle, duration(found[way]), "text b" if ours else "faint"))
    return parts


def draw(found):
    """The chart of what was saved as JSON."""
    lines = {(line["load"], line["figure"]): line for line in found["lines"] if line["ways"]}
    panels = [lines[key] for key in PANELS if key in lines]
    ways = [way for way in found["titles"] if way != "meshbox_settle_0" and any(way in line["ways"] for line in panels)]
    width = (WIDTH - PAD * (COLUMNS + 1)) / COLUMNS
    each = HEAD + len(ways) * (BAR + GAP) + PAD
    rows = -(-len(panels) // COLUMNS)
    height = TOP + rows * each + FOOT
    machine = found["machine"]
    about = f"{found['meshbox']}, {found['date']}: median of {found['rounds']} rounds, every byte compared; all ends on one machine"
    where = f"{machine['cpus']} cores ({machine['cpu']}), Linux {machine['kernel'].split('-')[0]}, {found['where']}. Shorter is better."
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:.0f}" viewBox="0 0 {WIDTH} {height:.0f}"'
        ' role="img" aria-label="How long files take, by several ways">', style(),
        f'<rect class="ground" x=".5" y=".5" width="{WIDTH - 1}" height="{height - 1:.0f}" rx="6"/>',
        text(PAD, 34, "How long files take from one directory to another", "text title"),
    ]
    for number, line in enumerate(panels):
        x = PAD + number % COLUMNS * (width + PAD)
        y = TOP + 8 + number // COLUMNS * each
        parts += panel(x, y, width, line, found["titles"], ways)
    parts += [text(PAD, height - 32, about, "faint"), text(PAD, height - 15, where, "faint"), "</svg>"]
    return "\n".join(parts) + "\n"
