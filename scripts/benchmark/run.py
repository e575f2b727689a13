#!/usr/bin/env python3
"""Runs what scripts/bench asks for. It expects programs built and huge pages reserved; scripts/bench sees to that."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.dont_write_bytecode = True

import compare  # noqa: E402
import plot  # noqa: E402
import report  # noqa: E402
import sections  # noqa: E402
from lab import Lab  # noqa: E402


def say(text):
    print(text, flush=True)


def arguments():
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--other-binary", help="compare with this one")
    parser.add_argument("--secgw")
    parser.add_argument("--huge", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--sections", default=",".join(sections.SECTIONS))
    parser.add_argument("--out", help="prefix of the files that are written")
    parser.add_argument("--worker", required=True, help="CPU of the worker")
    parser.add_argument("--other", required=True, help="CPU of everything else")
    parser.add_argument("--priority", default="", help="put before every command, such as `chrt -f 50`")
    parser.add_argument("--rounds", type=int, default=11, help="of a comparison")
    parser.add_argument("--header", default="")
    return parser.parse_args()


def names_of(text):
    names = text.split(",")
    unknown = [name for name in names if name not in sections.SECTIONS]
    if unknown:
        sys.exit(f"error: no section {unknown[0]}; there are {', '.join(sections.SECTIONS)}")
    return names


def check(rows):
    """Complaints about rows that a benchmark must not have."""
    complaints = []
    for row in rows:
        name = f"{row['section']}: {row['peer']} {row['mode']} {row['inner_bytes']}"
        missing = [key for key in ("peer", "mode", "cipher", "engine", "inner_bytes", "sas", "workers", "harness", "tsc_cycles",
                                   "tsc_cycles_generator", "mpps", "gbit_s_inner", "machine") if key not in row]
        if missing:
            complaints.append(f"{name} has no {', '.join(missing)}")
        # Workers that share an SA lose packets to its window when one of them is held up for long; others lose none.
        if row.get("lost", 0) > 0 and row["harness"] == "memory" and row["workers"] == 1:
            complaints.append(f"{name} lost {row['lost']} packets")
    return complaints


def main():
    options = arguments()
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as directory:
        lab = Lab(options.binary, directory, options.worker, options.other, options.huge, options.secgw, options.priority.split())
        if options.other_binary:
            seconds, sizes = (0.1, "64,1420") if options.quick else (0.15, "64,512,1420,imix")
            binaries = [options.binary, options.other_binary]
            return int(compare.report(compare.measure(lab, binaries, options.rounds, seconds, sizes), binaries, say))
        started = time.monotonic()
        rows, failures = sections.run(lab, sections.Plan(options.quick), names_of(options.sections), say)
    rows = sections.fold(rows)
    complaints = check(rows)
    header = f"{options.header} {'Short form, ' if options.quick else ''}{time.monotonic() - started:.0f} seconds."
    write(options.out, rows, failures, header)
    for complaint in complaints + [f"{name} failed: {why}" for name, why in failures.items()]:
        say(f"wrong: {complaint}")
    return int(bool(complaints or failures))


def write(prefix, rows, failures, header):
    picture = plot.svg(rows)
    if picture:
        with open(f"{prefix}.svg", "w") as file:
            file.write(picture)
    with open(f"{prefix}.jsonl", "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    text = report.markdown(rows, failures, header, os.path.basename(f"{prefix}.svg") if picture else None)
    with open(f"{prefix}.md", "w") as file:
        file.write(text)
    say(f"\n{text}\nwritten: {prefix}.md, .jsonl" + (", .svg" if picture else ""))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (KeyboardInterrupt, subprocess.SubprocessError) as error:
        sys.exit(f"error: {error!r}")
