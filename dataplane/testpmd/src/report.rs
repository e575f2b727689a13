//! What a benchmark prints: a line for people, or one JSON object a measurement.

use serde_json::{Map, Value, json};

use super::devices::Rates;
use super::histogram::Histogram;
use super::memory::Measured;
use super::options::{BenchOptions, Mode, Size};
use super::probe::STAGES;
use super::spread;
use super::tester::Found;

/// What every measurement has, whatever was measured (`benches/results/`); `scripts/benchmark/run.py` looks for the same.
pub const KEYS: [&str; 13] = [
    "peer",
    "mode",
    "cipher",
    "engine",
    "inner_bytes",
    "sas",
    "workers",
    "harness",
    "tsc_cycles",
    "tsc_cycles_generator",
    "mpps",
    "gbit_s_inner",
    "machine",
];

/// The machine's fingerprint.
pub struct Machine {
    value: Value,
    hz: u64,
}

impl Machine {
    /// Reads it from the system.
    pub fn read(hz: u64, dpdk: &str) -> Machine {
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let field = |name: &str| {
            let line = info.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            line.split_once(':').map_or("", |(_, value)| value.trim()).to_owned()
        };
        let flags = field("flags");
        let has = |flag: &&str| flags.split_whitespace().any(|it| it == *flag);
        let wide: Vec<&str> =
            ["aes", "avx2", "avx512f", "vaes", "vpclmulqdq"].into_iter().filter(has).collect();
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let value = json!({
            "cpu": format!("{} family {} model {}", field("model name"), field("cpu family"), field("model\t")),
            "features": wide.join(" "),
            "cores": info.lines().filter(|line| line.starts_with("processor")).count(),
            "kernel": kernel.trim(),
            "tsc_hz": hz,
            "dpdk": dpdk,
            "penstock": env!("CARGO_PKG_VERSION"),
            "load": load.split_whitespace().next().unwrap_or_default(),
        });
        Machine { value, hz }
    }
}

/// One measurement, in the words of its JSON.
pub struct Line(Map<String, Value>);

/// What every line says, whatever was measured.
pub struct About<'a> {
    /// The options.
    pub options: &'a BenchOptions,
    /// The machine.
    pub machine: &'a Machine,
    /// The mode.
    pub mode: Mode,
    /// The inner packets.
    pub size: &'a Size,
    /// SAs in each direction.
    pub sas: u32,
    /// The engine's name.
    pub engine: &'static str,
    /// What gave and took the packets.
    pub harness: &'a str,
}

impl About<'_> {
    /// `cycles` without the generator's `generator`, of each worker and packet; `pps` packets a second of all workers.
    fn line(&self, cycles: f64, generator: f64, pps: f64) -> Map<String, Value> {
        let inner =
            self.size.word.parse::<u32>().map_or_else(|_| json!(self.size.word), |octets| json!(octets));
        let seals = self.mode.seals();
        let value = json!({
            "peer": "penstock",
            "harness": self.harness,
            "mode": self.mode.name(),
            "cipher": if seals { json!(self.options.cipher.name()) } else { Value::Null },
            "engine": if seals { json!(self.engine) } else { Value::Null },
            "inner_bytes": inner,
            "sas": self.sas,
            "workers": self.options.workers(),
            "burst": self.options.burst,
            "esn": self.options.esn,
            "udp": self.options.udp,
            "replay_window": self.options.replay_window,
            "tsc_cycles": round(cycles, 1),
            "tsc_cycles_generator": round(generator, 1),
            "mpps": round(pps / 1e6, 3),
            "gbit_s_inner": round(pps * self.size.mean() * 8.0 / 1e9, 2),
        });
        match value {
            Value::Object(map) => map,
            _ => Map::new(),
        }
    }

    fn finish(&self, mut line: Map<String, Value>) -> Line {
        line.insert("machine".into(), self.machine.value.clone());
        Line(line)
    }

    fn micros(&self, cycles: u64) -> Value {
        round(cycles as f64 / self.machine.hz as f64 * 1e6, 2)
    }

    fn percentiles(&self, times: &Histogram) -> Value {
        json!({
            "p50": self.micros(times.at(0.5)), "p99": self.micros(times.at(0.99)),
            "p999": self.micros(times.at(0.999)), "p9999": self.micros(times.at(0.9999)), "max": self.micros(times.max()),
        })
    }

    /// Of the harness in memory: workers that each do nothing else.
    pub fn memory(&self, measured: &[Measured], updates: Option<u64>, huge_tables: bool) -> Line {
        let hz = self.machine.hz as f64;
        let net = |it: &Measured| it.cycles - it.generator;
        let pps: f64 = measured.iter().map(|it| hz / net(it)).sum();
        let workers = measured.len() as f64;
        let mean = |of: &dyn Fn(&Measured) -> f64| measured.iter().map(of).sum::<f64>() / workers;
        let mut line = self.line(workers * hz / pps, mean(&|it| it.generator), pps);
        let mut gaps = Histogram::default();
        measured.iter().for_each(|it| gaps.merge(&it.gaps));
        if self.options.own_sas {
            line.insert("own_sas".into(), json!(true));
        }
        line.insert("packets".into(), json!(measured.iter().map(|it| it.packets).sum::<u64>()));
        line.insert("lost".into(), json!(measured.iter().map(|it| it.lost).sum::<u64>()));
        line.insert("poll_gap_us".into(), self.percentiles(&gaps));
        if let Some(updates) = updates {
            line.insert("updates".into(), json!(updates));
        }
        if measured.iter().all(|it| it.stages.is_some()) {
            let stage = |at: usize| mean(&|it| it.stages.map_or(0.0, |stages| stages[at]));
            let stages =
                STAGES.iter().enumerate().map(|(at, name)| ((*name).to_owned(), round(stage(at), 1)));
            line.insert("stages".into(), Value::Object(stages.collect()));
        }
        let pages = |huge| if huge { "huge" } else { "ordinary" };
        line.insert("tables_pages".into(), json!(pages(huge_tables)));
        line.insert("generator_pages".into(), json!(pages(measured.iter().all(|it| it.huge))));
        self.finish(line)
    }

    /// Of one receiver and its helpers: the generator is not taken out, it takes part of the receiver's time.
    pub fn spread(&self, measured: &spread::Measured) -> Line {
        let workers = self.options.workers() as f64;
        let mut line = self.line(workers * measured.cycles, 0.0, self.machine.hz as f64 / measured.cycles);
        line.insert("packets".into(), json!(measured.packets));
        line.insert("handed".into(), json!(measured.handed));
        self.finish(line)
    }

    /// Of ports: everything that the workers did in that time, devices included.
    pub fn ports(&self, rates: &Rates) -> Line {
        let hz = self.machine.hz as f64;
        let pps = rates.sent as f64 / rates.seconds;
        let workers = self.options.workers() as f64;
        let mut line = self.line(workers * hz / pps, 0.0, pps);
        line.insert("packets".into(), json!(rates.received));
        line.insert("lost".into(), json!(rates.lost));
        if rates.busy > 0 {
            line.insert("busy_cycles".into(), round(rates.busy as f64 / rates.received.max(1) as f64, 1));
        }
        self.finish(line)
    }

    /// Of a tester beside the gateway: the rate without a loss.
    pub fn tester(&self, found: &Found) -> Line {
        let cycles = self.machine.hz as f64 / found.no_drop;
        let mut line = self.line(cycles, 0.0, found.no_drop);
        line.insert("partial_drop_mpps".into(), round(found.partial_drop / 1e6, 3));
        line.insert("flat_out_mpps".into(), round(found.flat_out / 1e6, 3));
        line.insert("trials".into(), json!(found.trials));
        for (part, trial) in &found.at {
            let mut latency = self.percentiles(&trial.latency);
            latency["mpps"] = round(trial.rate / 1e6, 3);
            latency["lost"] = json!(trial.offered - trial.received.min(trial.offered));
            line.insert(format!("latency_us_{}", (part * 100.0) as u32), latency);
        }
        self.finish(line)
    }
}

impl Line {
    /// For programs.
    pub fn json(&self) -> String {
        Value::Object(self.0.clone()).to_string()
    }

    /// For people.
    pub fn text(&self) -> String {
        let of = |key: &str| match self.0.get(key) {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Null) | None => "-".into(),
            Some(value) => value.to_string(),
        };
        let mut text = format!(
            "{:6} {:>5} B inner, {} SAs, {} workers, {}, {}: {} cycles/packet (generator {} subtracted), {} Mpps, {} Gbit/s inner",
            of("mode"),
            of("inner_bytes"),
            of("sas"),
            of("workers"),
            of("engine"),
            of("harness"),
            of("tsc_cycles"),
            of("tsc_cycles_generator"),
            of("mpps"),
            of("gbit_s_inner"),
        );
        for key in [
            "packets",
            "lost",
            "handed",
            "updates",
            "stages",
            "poll_gap_us",
            "flat_out_mpps",
            "partial_drop_mpps",
            "latency_us_50",
            "latency_us_90",
        ] {
            if self.0.contains_key(key) {
                text += &format!(", {key} {}", of(key).replace('"', ""));
            }
        }
        text
    }
}

/// A number with so many digits behind the point; null where it is none.
fn round(value: f64, digits: i32) -> Value {
    let scale = 10f64.powi(digits);
    json!((value * scale).round() / scale)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn about<R>(mode: Mode, then: impl FnOnce(About<'_>) -> R) -> R {
        let options = BenchOptions::try_parse_from(["x"]).unwrap();
        let machine = Machine::read(2_000_000_000, "DPDK");
        let (size, engine) = ("imix".parse().unwrap(), "vaes");
        then(About {
            options: &options,
            machine: &machine,
            mode,
            size: &size,
            sas: 3,
            engine,
            harness: "memory",
        })
    }

    #[test]
    fn every_line_has_what_the_results_are_read_by() {
        let measured = [Measured { cycles: 150.0, generator: 50.0, packets: 10, ..Measured::default() }];
        let rates = Rates { seconds: 2.0, received: 21_000_000, sent: 20_000_000, lost: 1_000_000, busy: 0 };
        let found = Found { no_drop: 1e6, at: vec![(0.5, Default::default())], ..Found::default() };
        let lines = about(Mode::Encap, |about| {
            [about.memory(&measured, Some(4), true), about.ports(&rates), about.tester(&found)]
        });
        for line in &lines {
            let value: Value = serde_json::from_str(&line.json()).unwrap();
            for key in KEYS {
                assert!(!value[key].is_null(), "{key} in {value}");
            }
            assert_eq!((&value["inner_bytes"], &value["sas"]), (&json!("imix"), &json!(3)));
            assert!(value["machine"]["cores"].as_u64() >= Some(1));
            assert!(!line.text().contains('\n'));
        }
        // 100 cycles at 2 GHz.
        assert_eq!((&lines[0].0["mpps"], &lines[0].0["tsc_cycles"]), (&json!(20.0), &json!(100.0)));
        assert_eq!((&lines[1].0["mpps"], &lines[1].0["lost"]), (&json!(10.0), &json!(1_000_000)));
        assert_eq!(lines[2].0["latency_us_50"]["lost"], json!(0));
        // Means of 7:4:1 of 64, 570 and 1420: 345.67 octets.
        assert_eq!(lines[0].0["gbit_s_inner"], json!(55.31));
    }

    #[test]
    fn forwarding_has_no_cipher() {
        let line = about(Mode::Io, |about| about.ports(&Rates { seconds: 1.0, sent: 5, ..Rates::default() }));
        assert!(line.0["cipher"].is_null() && line.0["engine"].is_null());
    }

    #[test]
    fn two_workers_add_up() {
        let one = Measured { cycles: 100.0, ..Measured::default() };
        let line = about(Mode::Encap, |about| about.memory(&[one.clone(), one], None, false));
        assert_eq!((&line.0["mpps"], &line.0["tsc_cycles"]), (&json!(40.0), &json!(100.0)));
        assert!(!line.0.contains_key("updates") && !line.0.contains_key("stages"));
    }
}
