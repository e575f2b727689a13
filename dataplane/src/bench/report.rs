//! What a benchmark prints: a line for people, or one JSON object a measurement.

use std::fmt::Write as _;

use super::Measured;
use super::options::{BenchOptions, Mode, Size};

/// The machine's fingerprint.
pub struct Machine {
    cpu: String,
    cores: usize,
    kernel: String,
    tsc_hz: u64,
}

impl Machine {
    /// Reads it from the system.
    pub fn read(tsc_hz: u64) -> Machine {
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let field = |name: &str| {
            let line = info.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            line.split_once(':').map_or("", |(_, value)| value.trim()).to_owned()
        };
        let cpu =
            format!("{} family {} model {}", field("model name"), field("cpu family"), field("model\t"));
        let kernel =
            std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned();
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        Machine { cpu, cores, kernel, tsc_hz }
    }
}

/// One measurement.
pub struct Line {
    mode: &'static str,
    cipher: &'static str,
    engine: &'static str,
    size: String,
    sas: u32,
    burst: u16,
    cycles: f64,
    generator: f64,
    mpps: f64,
    gbit_s_inner: f64,
    packets: u64,
    lost: u64,
    esn: bool,
    udp: bool,
    replay_window: u32,
}

impl Line {
    /// Derives the figures of one mode. Rates are those of one core that does nothing else, inner octets of IPv4.
    pub fn new(
        mode: Mode,
        size: &Size,
        sas: u32,
        engine: &'static str,
        options: &BenchOptions,
        measured: &Measured,
        hz: u64,
    ) -> Line {
        let cycles = mode.cycles(measured);
        let mpps = hz as f64 / cycles / 1e6;
        Line {
            mode: mode.name(),
            cipher: options.cipher.name(),
            engine,
            size: size.word.clone(),
            sas,
            burst: options.burst,
            cycles,
            generator: measured.generator,
            mpps,
            gbit_s_inner: mpps * measured.inner * 8.0 / 1e3,
            packets: measured.packets,
            lost: measured.lost,
            esn: options.esn,
            udp: options.udp,
            replay_window: options.replay_window,
        }
    }

    /// For people.
    pub fn text(&self) -> String {
        format!(
            "{:6} {:>5} B inner, {:>6} SAs, {}: {:7.1} cycles/packet (generator {:.1} subtracted), {:7.3} Mpps, {:7.2} \
             Gbit/s inner, {} packets, {} lost",
            self.mode,
            self.size,
            self.sas,
            self.engine,
            self.cycles,
            self.generator,
            self.mpps,
            self.gbit_s_inner,
            self.packets,
            self.lost,
        )
    }

    /// For programs. No value needs escaping but the CPU's name.
    pub fn json(&self, machine: &Machine) -> String {
        let bytes = if self.size == "imix" { "\"imix\"".to_owned() } else { self.size.clone() };
        let mut line = String::new();
        let _ = write!(
            line,
            "{{\"peer\":\"penstock\",\"harness\":\"memory\",\"mode\":\"{}\",\"cipher\":\"{}\",\"engine\":\"{}\",\
             \"inner_bytes\":{bytes},\"sas\":{},\"workers\":1,\"burst\":{},\"esn\":{},\"udp\":{},\"replay_window\":{},\
             \"tsc_cycles\":{:.1},\"tsc_cycles_generator\":{:.1},\"mpps\":{:.3},\"gbit_s_inner\":{:.2},\
             \"packets\":{},\"lost\":{},\"machine\":{{\"cpu\":\"{}\",\"cores\":{},\"kernel\":\"{}\",\"tsc_hz\":{}}}}}",
            self.mode,
            self.cipher,
            self.engine,
            self.sas,
            self.burst,
            self.esn,
            self.udp,
            self.replay_window,
            self.cycles,
            self.generator,
            self.mpps,
            self.gbit_s_inner,
            self.packets,
            self.lost,
            machine.cpu.replace(['"', '\\'], " "),
            machine.cores,
            machine.kernel,
            machine.tsc_hz,
        );
        line
    }
}
