"""The report of a benchmark: folded rows in, Markdown out. Rates are of inner octets (the IPv4 packet in the tunnel)."""

import targets
from rows import pick, ratio, sizes_of, table, value

TITLES = {
    "throughput": "Throughput by size, in memory",
    "stages": "Cycles by stage",
    "sas": "Scaling with SAs",
    "workers": "Scaling with workers",
    "peers": "Beside ipsec-secgw",
    "forwarding": "Forwarding without IPsec, beside dpdk-testpmd",
    "no_drop": "Rate without a loss, and latency",
    "stalls": "Updates of the tables under load",
}
STAGES = ["rx", "classify", "decap", "route", "encap", "crypto", "tx"]


def throughput(rows):
    text = "TSC cycles per packet, the generator's own cost subtracted; Mpps; Gbit/s of inner octets. One worker, one SA.\n\n"
    for cipher in dict.fromkeys(row["cipher"] for row in rows):
        cells = []
        for size in sizes_of(rows):
            cell = [size]
            for mode in ("encap", "decap", "loop"):
                row = (pick(rows, cipher=cipher, inner_bytes=size, mode=mode) or [{}])[0]
                cell += [row.get("tsc_cycles"), row.get("mpps"), row.get("gbit_s_inner")]
            cell.append(value(rows, "tsc_cycles_generator", cipher=cipher, inner_bytes=size, mode="encap"))
            cells.append(cell)
        head = ["inner octets"] + [f"{mode} {unit}" for mode in ("encap", "decap", "loop") for unit in ("cycles", "Mpps", "Gbit/s")]
        text += f"{cipher}, engine {value(rows, 'engine', cipher=cipher)}\n\n" + table(head + ["generator cycles"], cells) + "\n"
    lost = sum(row["lost"] for row in rows)
    return text + f"Packets lost in all of it: {lost}.\n"


def stages(rows):
    cells = []
    for row in rows:
        cells.append([row["mode"], row["inner_bytes"]] + [row["stages"][name] for name in STAGES] + [row["tsc_cycles"]])
    note = "TSC cycles per packet. The engine is a column of its own, not in encap or decap; the clock is read after every stage, which adds one or two cycles.\n\n"
    return note + table(["mode", "inner octets"] + STAGES + ["whole"], cells)


def sas(rows):
    counts = sorted({row["sas"] for row in rows})
    cells = []
    for mode in ("encap", "decap"):
        for size in sizes_of(rows):
            one = value(rows, "tsc_cycles", mode=mode, inner_bytes=size, sas=1)
            found = [value(rows, "tsc_cycles", mode=mode, inner_bytes=size, sas=count) for count in counts]
            cells.append([mode, size] + [f"{it} ({ratio(it, one)})" if it else None for it in found])
    pages = ", ".join(sorted({f"{row['sas']} SAs: {row['tables_pages']} pages" for row in rows}))
    note = f"TSC cycles per packet, and how many times those of one SA; every packet is another SA's. Tables in {pages}.\n\n"
    return note + table(["mode", "inner octets"] + [f"{count} SAs" for count in counts], cells)


def workers(rows):
    memory = [("1, shared", {"sas": 1}), ("2, shared", {"sas": 2}), ("2, one each", {"sas": 2, "own_sas": True})]

    def of(mode, size, harness):
        def mpps(**wanted):
            return value(rows, "mpps", mode=mode, inner_bytes=size, harness=harness, **dict({"own_sas": None}, **wanted))
        one, apart = mpps(workers=1), mpps(processes=2)
        kinds = memory if harness == "memory" else [("1", {"sas": 1})]
        two = [(name, mpps(workers=2, processes=None, **wanted)) for name, wanted in kinds]
        return [[mode, size, name, one, both, apart, ratio(both, one), ratio(apart, one), ratio(both, apart)] for name, both in two if both]

    text = ""
    head = ["mode", "inner octets", "tunnels", "1 worker", "2 workers", "2 processes", "2 workers / 1", "2 processes / 1", "2 workers / 2 processes"]
    for harness in dict.fromkeys(row["harness"] for row in rows):
        cells = [cell for mode in ("encap", "decap") for size in sizes_of(rows) for cell in of(mode, size, harness)]
        if harness == "memory":
            text += "Mpps. Each worker has a generator, as behind a NIC with queues: two workers share all SAs, or have a tunnel each, as where the NIC chooses queues by SPI. "
            text += "One worker and each of the two processes, which know nothing of each other (what the machine can do), have one tunnel.\n\n"
        else:
            text += "Mpps, spread in software: one worker receives everything, all work on it, in order. The generator is in it.\n\n"
        text += table(head, cells) + "\n"
    return text


def peers(rows):
    cells = []
    for mode in ("encap", "decap", "bypass"):
        for size in sizes_of(pick(rows, mode=mode)):
            ours = value(rows, "tsc_cycles", mode=mode, inner_bytes=size, peer="penstock")
            theirs = value(rows, "tsc_cycles", mode=mode, inner_bytes=size, peer="ipsec-secgw")
            cells.append([mode, size, ours, theirs, ratio(ours, theirs),
                          value(rows, "mpps", mode=mode, inner_bytes=size, peer="penstock"),
                          value(rows, "mpps", mode=mode, inner_bytes=size, peer="ipsec-secgw")])
    note = ("TSC cycles per packet with everything in them, the same captures from net_pcap, out by net_null, nothing subtracted. AES-128-GCM, one SA. "
            "ipsec-secgw runs in its library mode on crypto_aesni_gcm, without a replay window; Penstock has its window of 1024. bypass is ipsec-secgw forwarding without ESP.\n\n")
    return note + table(["mode", "inner octets", "Penstock cycles", "ipsec-secgw cycles", "Penstock / ipsec-secgw", "Penstock Mpps", "ipsec-secgw Mpps"], cells)


def forwarding(rows):
    cells = []
    for row in pick(rows, peer="penstock"):
        theirs = value(rows, "mpps", peer="testpmd", harness=row["harness"], inner_bytes=row["inner_bytes"])
        cells.append([row["harness"], row["inner_bytes"], row["mpps"], theirs, ratio(row["mpps"], theirs)])
    note = "Mpps in mode io, bursts of 64. net_null+net_null gives frames of 64 octets without writing them.\n\n"
    return note + table(["ports", "inner octets", "Penstock", "dpdk-testpmd", "Penstock / testpmd"], cells)


def no_drop(rows):
    cells = []
    for row in rows:
        half, most = row.get("latency_us_50") or {}, row.get("latency_us_90") or {}
        cells.append([row["mode"], row["inner_bytes"], row["mpps"], row["gbit_s_inner"], row["partial_drop_mpps"], row["flat_out_mpps"],
                      *(f"{it.get('p50')} / {it.get('p99')} / {it.get('p999')} / {it.get('max')}" for it in (half, most)),
                      f"{half.get('lost')} / {most.get('lost')}"])
    note = ("RFC 2544 over net_memif, the tester on the other core: the highest rate at which no packet of a trial is lost (NDR), at most 0.5 % are (PDR), and flat out. "
            "Latency in microseconds from before a packet is handed over until after it is taken back, p50 / p99 / p99.9 / max, at 50 % and 90 % of NDR. "
            "io is the same ports without IPsec. loop seals and opens in one worker.\n\n")
    return note + table(["mode", "inner octets", "NDR Mpps", "Gbit/s inner", "PDR Mpps", "flat out Mpps", "latency at 50 %", "latency at 90 %", "lost there"], cells)


def stalls(rows):
    cells = []
    for row in rows:
        gap = row["poll_gap_us"]
        cells.append([row["beside"], row.get("updates", 0), row["mpps"], row["lost"], gap["p50"], gap["p99"], gap["p999"], gap.get("p9999"), gap.get("max_least"), gap.get("max_median"), gap["max"]])
    note = "encap of 64 octets while another CPU adds and takes out 10,000 SAs and their routes, again and again, or turns in a loop, or does nothing: time between two polls of the worker, in microseconds; and the worst one of a round of one second: of the calmest round, of the one in the middle, of all. Changes that hold the worker up would do so in every round; what comes in some rounds only, with a busy loop as well, is the host's.\n\n"
    return note + table(["the other CPU", "changes made", "Mpps", "lost", "gap p50", "gap p99", "gap p99.9", "gap p99.99", "worst, calmest round", "worst, middle round", "worst of all"], cells)


def markdown(rows, failures, header, plot):
    """The whole report."""
    machine = next((row["machine"] for row in rows if row.get("machine")), {})
    text = f"# Benchmark of Penstock\n\n{header}\n\n"
    facts = [[key, machine[key]] for key in machine]
    text += table(["machine", ""], facts)
    text += ("\nAll rates are of inner octets: the IPv4 packets inside the tunnel, without Ethernet, ESP or outer headers. Cycles are those of the TSC. "
             "Every figure is the median of its rounds; what is compared took turns.\n\n")
    if plot:
        text += f"![cycles per packet by size]({plot})\n\n"
    for name, title in TITLES.items():
        found = pick(rows, section=name)
        if found or name in failures:
            text += f"## {title}\n\n"
        if name in failures:
            text += f"Failed: {failures[name]}\n\n"
        if found:
            text += f"{globals()[name](found)}\n"
    return text + f"## What was aimed at\n\n{targets.section(rows)}"
