"""The sections of a benchmark. Each yields rows: dicts with the keys of benches/results/*.jsonl and their `section`.

What is compared takes turns in every round. A row of a round is folded with its likes into one with medians (`fold`).
"""

import contextlib
import statistics
import time

from captures import Captures

SIZES = ["64", "128", "256", "512", "1024", "1280", "1420", "1518", "imix"]
SAS = [1, 10, 100, 1000, 10000]
# What tells measurements apart; all else is measured.
IDENTITY = ["section", "peer", "harness", "mode", "cipher", "engine", "inner_bytes", "sas", "tunnels", "workers", "processes", "beside", "spread", "own_sas"]


class Plan:
    """How long and how often."""

    def __init__(self, quick):
        self.quick = quick
        self.rounds = 1 if quick else 5
        self.peer_rounds = 1 if quick else 3
        self.seconds = 0.1 if quick else 0.25
        self.peer_seconds = 0.3 if quick else 0.6
        self.sizes = ["64", "512", "1420", "imix"] if quick else SIZES
        self.sas = [1, 1000, 10000] if quick else SAS
        self.many_sas = [] if quick else [100000]
        self.trial_seconds = 0.1 if quick else 0.4
        self.stall_rounds = 1 if quick else 11


def tagged(section, rows, **extra):
    for row in rows:
        row.update(extra, section=section)
    return rows


def throughput(lab, plan):
    """Cycles and rates by size, in memory."""
    rows = []
    ciphers = ["aes128gcm16"] if plan.quick else ["aes128gcm16", "aes256gcm16"]
    for _ in range(plan.rounds):
        for cipher in ciphers:
            options = ["--forward-mode", "encap,decap,loop", "--sizes", ",".join(plan.sizes), "--cipher", cipher]
            rows += lab.penstock(options + ["--duration", str(plan.seconds)])
    return tagged("throughput", rows)


def stages(lab, plan):
    """Where the cycles of a packet go."""
    rows = []
    options = ["--forward-mode", "encap,decap", "--sizes", "64,512,1420,imix", "--stages"]
    for _ in range(plan.peer_rounds):
        rows += lab.penstock(options + ["--duration", str(plan.seconds)])
    return tagged("stages", rows)


def scaling(lab, plan):
    """Every packet another SA's."""
    rows = []
    options = ["--forward-mode", "encap,decap", "--sizes", "64,1420", "--duration", str(plan.seconds)]
    for round_ in range(plan.peer_rounds):
        rows += lab.penstock(options + ["--sas", ",".join(map(str, plan.sas))])
        if round_ == 0 and plan.many_sas:
            many = options + ["--sas", ",".join(map(str, plan.many_sas))]
            rows += lab.attempt(lambda: lab.penstock(many, timeout=240))
    return tagged("sas", rows)


def workers(lab, plan):
    """One worker, two on one tunnel, on two, and on one tunnel each, and two processes that know nothing of each other."""
    rows = []
    both = f"{lab.other},{lab.worker}"
    options = ["--forward-mode", "encap,decap", "--sizes", "64,1420", "--duration", str(max(plan.seconds, 0.3))]
    for _ in range(plan.peer_rounds):
        rows += lab.penstock(options)
        for tunnels in (1, 2):
            rows += lab.penstock(options + ["--nb-cores", "2", "--sas", str(tunnels)], cpus=both)
        if lab.knows("--own-sas"):
            rows += lab.attempt(lambda: lab.penstock(options + ["--nb-cores", "2", "--sas", "2", "--own-sas"], cpus=both))
        rows += apart(lab, options)
        if lab.knows("--spread"):
            spread = options + ["--spread"]
            rows += lab.attempt(lambda: lab.penstock(spread))
            rows += lab.attempt(lambda: lab.penstock(spread + ["--nb-cores", "2"], cpus=both))
            rows += lab.attempt(lambda: apart(lab, spread))
    return tagged("workers", rows)


def apart(lab, options):
    """Two processes at the same time, one on each CPU."""
    processes = [lab.start_penstock(options, cpus=cpu) for cpu in (lab.other, lab.worker)]
    return together([lab.lines(process) for process in processes])


def together(sides):
    """Rows of processes that ran at the same time: their rates add up."""
    rows = []
    for same in zip(*sides):
        row = dict(same[0], processes=len(same), workers=len(same))
        row["tsc_cycles"] = round(statistics.mean(it["tsc_cycles"] for it in same), 1)
        for key in ("mpps", "gbit_s_inner", "packets", "lost"):
            if key in row:
                row[key] = round(sum(it[key] for it in same), 3)
        rows.append(row)
    return rows


def peers(lab, plan):
    """The same captures through Penstock and ipsec-secgw, net_pcap in, net_null out; nothing subtracted."""
    captures = Captures(lab)
    rows = []
    main = ["64", "512", "1420"]
    others = [] if plan.quick else [size for size in plan.sizes if size not in main and size != "1518"]
    for round_ in range(plan.peer_rounds):
        for size in main + (others if round_ == 0 else []):
            for mode in ("encap", "decap"):
                rows += lab.attempt(lambda: of_penstock(lab, plan, captures, mode, size))
                if lab.secgw:
                    rows += lab.attempt(lambda: of_secgw(lab, plan, captures, mode, size))
        for size in main if lab.secgw and round_ == 0 else []:
            rows += lab.attempt(lambda: of_secgw(lab, plan, captures, "bypass", size))
    return tagged("peers", rows)


def circle(path):
    return f"net_pcap0,rx_pcap={path},infinite_rx=1"


def of_penstock(lab, plan, captures, mode, size):
    source = circle(captures.plain(size) if mode == "encap" else captures.esp(size))
    vdevs = [source, "net_null0,no-rx=1"] if mode == "encap" else ["net_null0,no-rx=1", source]
    options = ["--forward-mode", mode, "--sizes", size, "--duration", str(plan.peer_seconds)]
    return lab.penstock(options, vdevs=vdevs)


def of_secgw(lab, plan, captures, mode, size):
    source = circle(captures.esp(size) if mode == "decap" else captures.plain(size))
    vdevs = [source, "net_null0,no-rx=1"] if mode == "decap" else ["net_null0,no-rx=1", source]
    config = captures.bypass if mode == "bypass" else captures.config
    pps = lab.gateway(config, vdevs, plan.peer_seconds, "net_null0")
    row = rated(lab, "ipsec-secgw", "net_pcap+net_null", mode, size, pps)
    row.update(cipher="aes128gcm16" if mode != "bypass" else None, engine="aesni_gcm", replay_window=0)
    return [row]


def rated(lab, peer, harness, mode, size, pps):
    """A row of a program whose packets a second were read."""
    octets = 345.667 if size == "imix" else int(size)
    return {
        "peer": peer, "harness": harness, "mode": mode, "cipher": None, "engine": None,
        "inner_bytes": size if size == "imix" else int(size), "sas": 1, "workers": 1,
        "tsc_cycles": round(lab.machine["tsc_hz"] / pps, 1) if pps else None, "tsc_cycles_generator": 0.0,
        "mpps": round(pps / 1e6, 3), "gbit_s_inner": round(pps * octets * 8 / 1e9, 2), "machine": lab.machine,
    }


def forwarding(lab, plan):
    """Forwarding without IPsec beside dpdk-testpmd, on the same ports."""
    captures = Captures(lab)
    rows = []
    ports = [("64", ["net_null0,size=64", "net_null1,size=64"]), ("64", [circle(captures.plain("64")), "net_null0,no-rx=1"])]
    ports += [("1420", [circle(captures.plain("1420")), "net_null0,no-rx=1"])]
    for _ in range(plan.peer_rounds):
        for size, vdevs in ports:
            ours = ["--forward-mode", "io", "--sizes", size, "--duration", str(plan.peer_seconds)]
            mine = lab.attempt(lambda: lab.penstock(ours, vdevs=vdevs))
            rows += mine
            for row in mine:
                pps = lab.attempt(lambda: [lab.testpmd(vdevs, plan.peer_seconds)])
                rows += [rated(lab, "testpmd", row["harness"], "io", size, it) for it in pps]
    return tagged("forwarding", rows)


def no_drop(lab, plan):
    """RFC 2544: the rate without a loss over memif, and latencies below it."""
    rows = []
    sizes = "64,1420" if plan.quick else "64,512,1420"
    for mode in ("io", "encap", "loop"):
        path = f"{lab.directory}/memif-{mode}"
        vdevs = [f"net_memif{port},role={role},id={port % 2},socket={path},socket-abstract=no,rsize=11"
                 for port, role in enumerate(["server", "server", "client", "client"])]
        options = ["--forward-mode", mode, "--rfc2544", "--sizes", sizes, "--duration", str(plan.trial_seconds)]
        rows += lab.attempt(lambda: lab.penstock(options, cpus=f"{lab.other},{lab.worker}", vdevs=vdevs))
    return tagged("no_drop", rows)


def stalls(lab, plan):
    """The time between two polls of a worker while 10,000 SAs come and go, and while another CPU turns in a loop, or rests."""
    # Many short rounds by turns: a virtual machine whose CPUs are all busy stands still for milliseconds now and then.
    rows = []
    both = f"{lab.other},{lab.worker}"
    options = ["--forward-mode", "encap", "--sizes", "64", "--duration", "1"]
    for _ in range(plan.stall_rounds):
        for beside, updates in (("nothing", 0), ("a busy loop", 0), ("updates", 10000)):
            with lab.busy(lab.other) if beside == "a busy loop" else contextlib.nullcontext():
                found = lab.penstock(options + ["--updates", str(updates)], cpus=both)
            rows += tagged("stalls", found, beside=beside)
    return rows


SECTIONS = {
    "throughput": throughput, "stages": stages, "sas": scaling, "workers": workers, "peers": peers,
    "forwarding": forwarding, "no_drop": no_drop, "stalls": stalls,
}


def fold(rows):
    """One row of medians for all that are alike; `rounds` tells how many, `spread_cycles` how far apart they lie."""
    alike = {}
    for row in rows:
        alike.setdefault(tuple(str(row.get(key)) for key in IDENTITY), []).append(row)
    return [medians(rows) for rows in alike.values()]


def medians(rows):
    folded = {}
    for key, value in rows[-1].items():
        values = [row.get(key) for row in rows]
        if isinstance(value, dict) and key != "machine":
            folded[key] = medians([it for it in values if it])
        elif key in ("lost", "packets", "updates", "trials"):
            folded[key] = sum(values)
        elif key == "max":
            folded[key] = max(values)
            folded["max_median"] = round(statistics.median(values), 3)
            folded["max_least"] = min(values)
        elif isinstance(value, float) and None not in values:
            folded[key] = round(statistics.median(values), 3)
        else:
            folded[key] = value
    if "machine" in folded:
        folded["rounds"] = len(rows)
        cycles = [row["tsc_cycles"] for row in rows if row.get("tsc_cycles")]
        folded["cycles_range"] = [min(cycles), max(cycles)] if cycles else None
    return folded


def run(lab, plan, names, say):
    """All sections; rows, and the sections that failed with why. One that fails does not keep the others from running."""
    rows, failures = [], {}
    for name in names:
        say(f"{name}: {SECTIONS[name].__doc__}")
        started = time.monotonic()
        try:
            rows += SECTIONS[name](lab, plan)
        except Exception as error:  # A benchmark of many parts reports what it has.
            lab.failures.append(f"{type(error).__name__}: {error}")
        if lab.failures:
            failures[name] = "; ".join(lab.failures)
            say(f"  FAILED: {failures[name]}")
        lab.failures = []
        say(f"  {time.monotonic() - started:.0f} s")
    return rows, failures
