"""Programs of a benchmark: penstock-testpmd, dpdk-testpmd and ipsec-secgw are started, measured and stopped here.

Every measurement is a dict with the keys of benches/results/*.jsonl. A program is stopped by its own process id, also after a
failure; nothing else is touched.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import time

EAL_HUGE = ["--in-memory"]
EAL_ORDINARY = ["--no-huge", "--no-shconf", "-m", "512"]
START_SECONDS = 15.0
WARM_SECONDS = 0.3


class Failed(Exception):
    """A program did not do what it was started for."""


class Lab:
    """Where programs are, which CPUs they get, and where their files go."""

    def __init__(self, binary, directory, worker, other, huge, secgw=None, priority=()):
        self.binary = binary
        self.directory = directory
        self.worker = worker
        self.other = other
        self.huge = huge
        self.secgw = secgw
        self.priority = list(priority)
        self.number = 0
        self.machine = None
        self.failures = []

    def eal(self, cpus, vdevs=(), telemetry=False):
        """EAL's arguments; a file prefix of its own for each program."""
        self.number += 1
        prefix = f"penstock-bench-{os.getpid()}-{self.number}"
        arguments = ["-l", cpus, "--no-pci", "--file-prefix", prefix]
        arguments += EAL_HUGE if self.huge else EAL_ORDINARY
        arguments += [] if telemetry else ["--no-telemetry"]
        for vdev in vdevs:
            arguments += ["--vdev", vdev]
        return prefix, arguments

    def knows(self, option):
        """Whether penstock-testpmd has an option."""
        told = subprocess.run([self.binary, "--", "--help"], capture_output=True, text=True, timeout=30, check=False)
        return option in told.stdout

    def attempt(self, measure):
        """Rows of one measurement; none where it fails, which is kept: the others go on."""
        try:
            return measure()
        except (Failed, OSError, subprocess.SubprocessError) as error:
            self.failures.append(str(error))
            return []

    def penstock(self, options, cpus=None, vdevs=(), binary=None, timeout=300):
        """Runs penstock-testpmd to its end; its lines of JSON."""
        process = self.start_penstock(options, cpus, vdevs, binary)
        return self.lines(process, timeout)

    def start_penstock(self, options, cpus=None, vdevs=(), binary=None):
        """Starts penstock-testpmd; `lines` waits for it."""
        _, eal = self.eal(cpus or self.worker, vdevs)
        command = self.priority + [binary or self.binary] + eal + ["--", "--json"] + options
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    @contextlib.contextmanager
    def busy(self, cpu):
        """Keeps a CPU busy with nothing."""
        process = subprocess.Popen(self.priority + ["taskset", "-c", cpu, "sh", "-c", "while :; do :; done"])
        try:
            yield
        finally:
            stop(process)

    def lines(self, process, timeout=300):
        """Waits for a penstock-testpmd; its lines of JSON."""
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            raise Failed(f"no end within {timeout} s: {' '.join(process.args)}") from None
        finally:
            stop(process)
        if process.returncode != 0:
            raise Failed(f"{' '.join(process.args)}: {err.strip()[-400:]}")
        rows = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
        if rows:
            self.machine = rows[-1]["machine"]
        return rows

    def testpmd(self, vdevs, seconds, mode="io"):
        """Packets a second that testpmd forwards between its ports, on the worker's CPU."""
        prefix, eal = self.eal(f"{self.other},{self.worker}", vdevs, telemetry=True)
        command = self.priority + ["dpdk-testpmd"] + eal + ["--", f"--forward-mode={mode}", "--burst=64", "--nb-cores=1"]
        command += ["--total-num-mbufs=16384", "--rxd=1024", "--txd=1024", "--stats-period=3600"]
        return self.rate(command, prefix, seconds, None)

    def gateway(self, config, vdevs, seconds, out):
        """Packets a second that ipsec-secgw sends to the device `out`, on the worker's CPU."""
        prefix, eal = self.eal(self.worker, list(vdevs) + ["crypto_aesni_gcm0"], telemetry=True)
        command = self.priority + [self.secgw] + eal + ["--", "-p", "0x3", "-P", "-u", "0x1", f"--config=(0,0,{self.worker}),(1,0,{self.worker})"]
        command += ["-f", config, "-s", "8192", "-l"]
        return self.rate(command, prefix, seconds, out)

    def rate(self, command, prefix, seconds, out):
        """Starts a program of DPDK and reads its counters over its telemetry socket: packets sent a second."""
        log_name = os.path.join(self.directory, "peer.log")
        with open(log_name, "w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        try:
            telemetry = Telemetry(f"/var/run/dpdk/{prefix}/dpdk_telemetry.v2")
            until = time.monotonic() + START_SECONDS
            while not telemetry.sends(out):
                if time.monotonic() > until or process.poll() is not None:
                    with open(log_name, errors="replace") as log:
                        raise Failed(f"{command[len(self.priority)]} does not forward: {log.read()[-400:]}")
                time.sleep(0.05)
            time.sleep(WARM_SECONDS)
            first, started = telemetry.sent(out), time.perf_counter()
            time.sleep(seconds)
            last, ended = telemetry.sent(out), time.perf_counter()
            return (last - first) / (ended - started)
        finally:
            stop(process)


def stop(process):
    """Asks a process to end, waits, then kills it."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Telemetry:
    """The counters of a running DPDK program."""

    def __init__(self, path):
        self.path = path
        self.ports = None

    def ask(self, question):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.settimeout(5)
            connection.connect(self.path)
            connection.recv(4096)
            connection.send(question.encode())
            return next(iter(json.loads(connection.recv(65536)).values()))

    def sent(self, out):
        """Packets that left by the device `out`, or by all."""
        if self.ports is None:
            names = {port: self.ask(f"/ethdev/info,{port}")["name"] for port in self.ask("/ethdev/list")}
            self.ports = [port for port, name in names.items() if out is None or name == out]
        return sum(self.ask(f"/ethdev/stats,{port}")["opackets"] for port in self.ports)

    def sends(self, out):
        """Whether it is up and packets leave."""
        try:
            return self.sent(out) > 1000
        except (OSError, ValueError, KeyError, TypeError):
            self.ports = None
            return False
