"""A plot of folded rows as SVG, by hand: cycles per packet by size, and by number of SAs."""

from rows import pick, sizes_of

COLOURS = ["#1b6ca8", "#c8553d", "#588b3a", "#8a4f9e", "#b8860b", "#444444"]
WIDTH, HEIGHT = 560, 340
LEFT, RIGHT, TOP, BOTTOM = 60, 150, 36, 48


def steps(most):
    """Round figures for an axis up to `most`."""
    step = 1
    while most / step > 8:
        step *= 2 if str(step)[0] in "15" else 2.5
        step = int(step)
    return range(0, int(most) + step, step)


def panel(at, title, unit, labels, lines):
    """One diagram; `lines` are names with a value or None for each label."""
    values = [value for _, points in lines for value in points if value]
    if not values:
        return ""
    ticks = list(steps(max(values)))
    wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    x = [LEFT + wide * place / max(len(labels) - 1, 1) for place in range(len(labels))]

    def y(value):
        return TOP + high * (1 - value / ticks[-1])

    parts = [f'<g transform="translate({at},0)">', f'<text x="{LEFT}" y="20" font-weight="bold">{title}</text>']
    for tick in ticks:
        parts.append(f'<line x1="{LEFT}" x2="{LEFT + wide}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick}</text>')
    for label, place in zip(labels, x):
        parts.append(f'<text x="{place:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{label}</text>')
    parts.append(f'<text x="{LEFT + wide / 2}" y="{HEIGHT - 10}" text-anchor="middle">{unit}</text>')
    for number, (name, points) in enumerate(lines):
        colour = COLOURS[number % len(COLOURS)]
        there = [(place, y(value)) for place, value in zip(x, points) if value]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in there)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{colour}"/>' for a, b in there]
        parts.append(f'<text x="{LEFT + wide + 12}" y="{TOP + 10 + 18 * number}" fill="{colour}">{name}</text>')
    return "\n".join(parts + ["</g>"])


def points(rows, key, over, places, **wanted):
    found = {row[over]: row.get(key) for row in pick(rows, **wanted)}
    return [found.get(place) for place in places]


def svg(rows):
    """The whole picture; None where there is nothing to draw."""
    panels = []
    memory = pick(rows, section="throughput", cipher="aes128gcm16")
    if memory:
        sizes = sizes_of(memory)
        lines = [(mode, points(memory, "tsc_cycles", "inner_bytes", sizes, mode=mode)) for mode in ("encap", "decap", "loop")]
        panels.append(("TSC cycles per packet, AES-128-GCM, in memory", "inner octets", sizes, lines))
    peers = pick(rows, section="peers")
    if peers:
        sizes = sizes_of(pick(peers, mode="encap"))
        lines = [(f"{peer} {mode}", points(peers, "tsc_cycles", "inner_bytes", sizes, mode=mode, peer=peer))
                 for peer in ("penstock", "ipsec-secgw") for mode in ("encap", "decap")]
        panels.append(("TSC cycles per packet, net_pcap to net_null", "inner octets", sizes, [line for line in lines if any(line[1])]))
    scaling = pick(rows, section="sas")
    if scaling:
        counts = sorted({row["sas"] for row in scaling})
        lines = [(f"{mode} {size}", points(scaling, "tsc_cycles", "sas", counts, mode=mode, inner_bytes=size))
                 for mode in ("encap", "decap") for size in sizes_of(scaling)]
        panels.append(("TSC cycles per packet, every packet another SA", "SAs", counts, lines))
    if not panels:
        return None
    drawn = "\n".join(panel(WIDTH * number, *it) for number, it in enumerate(panels))
    wide = WIDTH * len(panels)
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide}" height="{HEIGHT}" viewBox="0 0 {wide} {HEIGHT}" '
            f'font-family="sans-serif" font-size="12">\n<rect width="{wide}" height="{HEIGHT}" fill="white"/>\n{drawn}\n</svg>\n')
