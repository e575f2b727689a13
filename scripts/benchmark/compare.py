"""Two builds of penstock-testpmd, A and B, by turns on one machine: is B slower? For use before a change lands.

Each round runs A and B one after the other, and in the next round B first. Of every round the ratio of B's cycles to A's counts;
their median is the verdict, and a bootstrap over the rounds says how far it can be trusted. What is less than the noise, or less
than a hundredth, is no difference.
"""

import random
import statistics

LEAST = 0.01
RESAMPLES = 2000


def measure(lab, binaries, rounds, seconds, sizes):
    """Cycles by (mode, octets): a list of pairs (A, B), one a round."""
    options = ["--forward-mode", "encap,decap", "--sizes", sizes, "--duration", str(seconds)]
    pairs = {}
    for round_ in range(rounds):
        found = [None, None]
        for which in ((0, 1) if round_ % 2 == 0 else (1, 0)):
            found[which] = lab.penstock(options, binary=binaries[which])
        for one, other in zip(*found):
            pairs.setdefault((one["mode"], one["inner_bytes"]), []).append((one["tsc_cycles"], other["tsc_cycles"]))
    return pairs


def judge(pairs):
    """Median ratio B to A, the interval that holds it in 95 of 100, and the verdict in a word."""
    ratios = [other / one for one, other in pairs]
    chance = random.Random(1)
    resampled = sorted(statistics.median(chance.choices(ratios, k=len(ratios))) for _ in range(RESAMPLES))
    low, high = resampled[RESAMPLES // 40], resampled[-RESAMPLES // 40]
    if low > 1 + LEAST:
        verdict = "slower"
    elif high < 1 - LEAST:
        verdict = "faster"
    else:
        verdict = "same"
    return statistics.median(ratios), (low, high), verdict


def report(pairs, names, say):
    """Prints a table; whether B is slower anywhere."""
    say(f"A: {names[0]}\nB: {names[1]}\n")
    say(f"{'mode':6} {'octets':>6} {'A cycles':>9} {'B cycles':>9} {'B / A':>7}  {'95 %':15} verdict")
    slower = False
    for (mode, octets), found in pairs.items():
        ratio, (low, high), verdict = judge(found)
        slower |= verdict == "slower"
        one, other = (statistics.median(it[which] for it in found) for which in (0, 1))
        say(f"{mode:6} {octets:>6} {one:9.1f} {other:9.1f} {ratio:7.3f}  {low:.3f} to {high:.3f}  {verdict}")
    say("\nB is slower: look before it lands" if slower else "\nB is not slower than A beyond the noise")
    return slower
