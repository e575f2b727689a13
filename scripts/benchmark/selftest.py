#!/usr/bin/env python3
"""What scripts/bench does with figures, held against figures that are known. Runs no benchmark."""

import os
import random
import sys
import tempfile
import unittest
import xml.dom.minidom

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.dont_write_bytecode = True

import captures  # noqa: E402
import compare  # noqa: E402
import plot  # noqa: E402
import report  # noqa: E402
import run  # noqa: E402
import sections  # noqa: E402
import targets  # noqa: E402


def row(section, **what):
    base = {"section": section, "peer": "penstock", "harness": "memory", "mode": "encap", "cipher": "aes128gcm16", "engine": "vaes",
            "inner_bytes": 64, "sas": 1, "workers": 1, "tsc_cycles": 100.0, "tsc_cycles_generator": 20.0, "mpps": 26.0,
            "gbit_s_inner": 13.3, "packets": 10, "lost": 0, "tables_pages": "huge", "machine": {"cpu": "x", "tsc_hz": 2.6e9}}
    return dict(base, **what)


class Folding(unittest.TestCase):
    def test_alike_rows_become_their_median(self):
        rows = [row("throughput", tsc_cycles=cycles, stages={"rx": cycles / 10}) for cycles in (90.0, 300.0, 100.0)]
        folded = sections.fold(rows + [row("throughput", mode="decap")])
        self.assertEqual([it["mode"] for it in folded], ["encap", "decap"])
        self.assertEqual((folded[0]["tsc_cycles"], folded[0]["stages"]["rx"], folded[0]["packets"]), (100.0, 10.0, 30))
        self.assertEqual((folded[0]["rounds"], folded[0]["cycles_range"]), (3, [90.0, 300.0]))

    def test_tunnels_that_are_shared_are_told_from_those_that_are_not(self):
        rows = [row("workers", workers=2, sas=2), row("workers", workers=2, sas=2, own_sas=True)]
        self.assertEqual(len(sections.fold(rows)), 2)

    def test_the_worst_of_all_rounds_stays(self):
        rows = [row("stalls", poll_gap_us={"p50": gap, "max": gap * 10}) for gap in (1.0, 2.0, 9.0)]
        self.assertEqual(sections.fold(rows)[0]["poll_gap_us"], {"p50": 2.0, "max": 90.0, "max_median": 20.0, "max_least": 10.0})

    def test_processes_beside_each_other_add_up(self):
        found = sections.together([[row("workers", mpps=3.0)], [row("workers", mpps=4.0, lost=2)]])[0]
        self.assertEqual((found["mpps"], found["lost"], found["processes"], found["workers"]), (7.0, 2, 2, 2))


class Judging(unittest.TestCase):
    def pairs(self, ratio, noise):
        chance = random.Random(7)
        return [(100.0, 100.0 * ratio * (1 + chance.uniform(-noise, noise))) for _ in range(11)]

    def test_a_clear_difference_is_told(self):
        self.assertEqual(compare.judge(self.pairs(1.05, 0.01))[2], "slower")
        self.assertEqual(compare.judge(self.pairs(0.93, 0.01))[2], "faster")

    def test_noise_and_trifles_are_no_difference(self):
        self.assertEqual(compare.judge(self.pairs(1.0, 0.3))[2], "same")
        self.assertEqual(compare.judge(self.pairs(1.004, 0.001))[2], "same")

    def test_slower_anywhere_is_slower(self):
        said = []
        pairs = {("encap", 64): self.pairs(0.9, 0.001), ("decap", 64): self.pairs(1.1, 0.001)}
        self.assertTrue(compare.report(pairs, ["a", "b"], said.append))
        self.assertFalse(compare.report({("encap", 64): self.pairs(1.0, 0.0)}, ["a", "b"], said.append))


class Reporting(unittest.TestCase):
    def rows(self):
        rows = [row("throughput", mode=mode, inner_bytes=size) for mode in ("encap", "decap", "loop") for size in (64, 1420, "imix")]
        rows += [row("stages", stages=dict.fromkeys(report.STAGES, 1.0))]
        rows += [row("sas", sas=count, tsc_cycles=100.0 * count) for count in (1, 10)]
        rows += [row("workers"), row("workers", workers=2, mpps=50.0), row("workers", workers=2, processes=2, mpps=52.0)]
        rows += [row("workers", workers=2, sas=2, mpps=51.0), row("workers", workers=2, sas=2, own_sas=True, mpps=51.5)]
        one = {"harness": "memory, one receiver"}
        rows += [row("workers", mpps=10.0, **one), row("workers", workers=2, mpps=19.0, **one), row("workers", workers=2, processes=2, mpps=20.0, **one)]
        rows += [row("peers"), row("peers", peer="ipsec-secgw", tsc_cycles=200.0), row("peers", peer="ipsec-secgw", mode="bypass")]
        rows += [row("forwarding", mode="io"), row("forwarding", mode="io", peer="testpmd", mpps=25.0)]
        rows += [row("no_drop", partial_drop_mpps=1.0, flat_out_mpps=2.0, latency_us_50={"p50": 3.25, "lost": 0})]
        rows += [row("stalls", beside="nothing", poll_gap_us={"p50": 1.0, "p99": 2.0, "p999": 3.0, "p9999": 3.5, "max": 4.0, "max_median": 3.75, "max_least": 3.6})]
        return rows

    def test_every_section_has_its_table(self):
        text = report.markdown(self.rows(), {}, "header", "plot.svg")
        for title in report.TITLES.values():
            self.assertIn(f"## {title}\n", text)
        for cell in ("| 1000.0 (10.0) |", "| 100.0 | 200.0 | 0.5 |", "| 26.0 | 25.0 | 1.04 |", "| 1, shared | 26.0 | 50.0 | 52.0 | 1.92 | 2.0 | 0.96 |",
                     "| 2, shared | 26.0 | 51.0 | 52.0 |", "| 2, one each | 26.0 | 51.5 | 52.0 | 1.98 | 2.0 | 0.99 |", "| 1 | 10.0 | 19.0 | 20.0 | 1.9 | 2.0 | 0.95 |", "3.25 / None", "| 3.0 | 3.5 | 3.6 | 3.75 | 4.0 |"):
            self.assertIn(cell, text)
        self.assertNotIn("Failed", text)

    def test_what_was_aimed_at_is_held_against_what_was_reached(self):
        rows = [row("throughput", inner_bytes=64, tsc_cycles=cycles, cipher=cipher) for cycles, cipher in ((60.0, "aes128gcm16"), (72.0, "aes256gcm16"))]
        rows += [row("forwarding", mode="io", mpps=20.0), row("forwarding", mode="io", peer="testpmd", mpps=25.0)]
        rows += [row("stalls", beside=beside, poll_gap_us={"p9999": gap / 2, "max_least": gap}) for beside, gap in (("a busy loop", 10.0), ("updates", 65.0))]
        found = {line[0]: line[1:] for line in targets.lines(rows)}
        self.assertEqual(found["encap, 64: cycles, AES-128"], ["at most 75", 60.0, "met"])
        self.assertEqual(found["encap, 64: AES-256 over AES-128"], ["at most 1.1", 1.2, "missed by 9 %"])
        self.assertEqual([line for what, line in found.items() if what.startswith("io")], [["at least 0.9", 0.8, "missed by 11 %"]])
        self.assertEqual([line[1:] for what, line in found.items() if "gap" in what], [[27.5, "met"], [55.0, "missed by 10 %"]])
        self.assertEqual(len(found), 5)

    def test_a_section_that_failed_says_so(self):
        text = report.markdown(self.rows()[:9], {"peers": "no compiler"}, "header", None)
        self.assertIn("## Beside ipsec-secgw\n\nFailed: no compiler", text)

    def test_the_plot_is_well_formed(self):
        drawn = xml.dom.minidom.parseString(plot.svg(self.rows()))
        self.assertEqual(len(drawn.getElementsByTagName("g")), 3)
        self.assertIsNone(plot.svg([]))
        self.assertTrue(all(len(plot.steps(most)) <= 10 for most in (0.5, 7, 99, 3333, 1e6)))

    def test_losses_and_gaps_in_rows_are_complained_about(self):
        self.assertEqual(run.check(self.rows()), [])
        bad = row("throughput", lost=3)
        del bad["engine"]
        self.assertEqual(len(run.check([bad])), 2)


class Capturing(unittest.TestCase):
    def test_a_capture_has_valid_packets_of_its_sizes(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "a.pcap")
            captures.write(path, captures.IMIX)
            self.assertEqual(captures.count(path), captures.PACKETS)
        frame = captures.packet(3, 64)
        self.assertEqual((len(frame), captures.checksum(frame[14:34])), (78, 0))
        self.assertEqual([captures.IMIX.count(size) for size in (64, 570, 1420)], [7, 4, 1])


if __name__ == "__main__":
    unittest.main()
