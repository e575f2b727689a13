"""What a gateway should reach on one core of a fast CPU, and what it did: folded rows in, lines of a table out."""

from rows import pick, ratio, table, value

CYCLES = {64: 75, 512: 130, 1420: 205, "imix": 120}
AES_256 = 1.1
SAS = {10000: 1.3, 100000: 1.8}
WORKERS = {1: 1.8, 2: 1.9}
SECGW = {64: 0.6, 1420: 0.75}
FORWARDING = 0.9
STALL_US = 50


def cycles(rows, mode, size, cipher):
    return value(rows, "tsc_cycles", section="throughput", mode=mode, inner_bytes=size, cipher=cipher)


def of_mode(rows, mode):
    """(what, wanted, reached, whether more is better) of one direction."""
    for size, wanted in CYCLES.items():
        one = cycles(rows, mode, size, "aes128gcm16")
        yield f"{mode}, {size}: cycles, AES-128", wanted, one, False
        yield f"{mode}, {size}: AES-256 over AES-128", AES_256, ratio(cycles(rows, mode, size, "aes256gcm16"), one), False
    many = pick(rows, section="sas", mode=mode, inner_bytes=64)
    for count, wanted in SAS.items():
        yield f"{mode}, 64: {count} SAs over one", wanted, ratio(value(many, "tsc_cycles", sas=count), value(many, "tsc_cycles", sas=1)), False
    for tunnels, wanted in WORKERS.items():
        for size in (64, 1420):
            alike = pick(rows, section="workers", mode=mode, inner_bytes=size, harness="memory")
            own = True if tunnels == 2 else None
            both = value(alike, "mpps", workers=2, processes=None, sas=tunnels, own_sas=own)
            what = "on one tunnel" if tunnels == 1 else "with a tunnel each"
            yield f"{mode}, {size}: two workers {what} over one worker", wanted, ratio(both, value(alike, "mpps", workers=1)), True
    for size, wanted in SECGW.items():
        beside = pick(rows, section="peers", mode=mode, inner_bytes=size)
        ours, theirs = (value(beside, "tsc_cycles", peer=peer) for peer in ("penstock", "ipsec-secgw"))
        yield f"{mode}, {size}: cycles over those of ipsec-secgw", wanted, ratio(ours, theirs), False


def others(rows):
    for row in pick(rows, section="forwarding", peer="penstock"):
        alike = {"harness": row["harness"], "inner_bytes": row["inner_bytes"]}
        theirs = value(rows, "mpps", section="forwarding", peer="testpmd", **alike)
        yield f"io, {row['inner_bytes']}, {row['harness']}: rate over that of testpmd", FORWARDING, ratio(row["mpps"], theirs), True
    for key, what in (("p9999", "gap at 99.99 %"), ("max_least", "worst gap of the calmest round")):
        loop, updates = (value(rows, "poll_gap_us", section="stalls", beside=beside) for beside in ("a busy loop", "updates"))
        more = round(updates[key] - loop[key], 1) if loop and updates else None
        yield f"{what}: microseconds more with updates than beside a busy loop", STALL_US, more, False


def lines(rows):
    """Of every target that was measured: what, wanted, reached, met or by how much it is missed."""
    for what, wanted, reached, more in [*of_mode(rows, "encap"), *of_mode(rows, "decap"), *others(rows)]:
        if reached is None:
            continue
        met = reached >= wanted if more else reached <= wanted
        missed = abs(reached / wanted - 1) * 100
        yield [what, f"{'at least' if more else 'at most'} {wanted}", reached, "met" if met else f"missed by {missed:.0f} %"]


def section(rows):
    note = "Set for one core of a fast CPU with AVX-512, in TSC cycles of 2.6 GHz; docs/performance.md says what bounds those that are missed, and what was tried.\n\n"
    return note + table(["inner octets", "wanted", "reached", ""], lines(rows))
