//! Keeps the data plane running: the configuration enters as arguments, a process leaves, again whenever it dies. One that
//! an earlier control left running is adopted, not started again.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use penstock_tables::StateView;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::sync::watch;

use crate::config::{Config, EngineChoice, HugePages, SpreadChoice};

/// How often a data plane that is no child of ours is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// A data plane that lives so long started well.
const WELL: Duration = Duration::from_secs(3);
/// First and longest wait before a data plane that dies at once is started again.
const WAIT: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// How long the data plane may take to stop.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why the data plane does not run.
#[derive(Debug, thiserror::Error)]
pub enum SuperviseError {
    /// The program is not there.
    #[error("cannot start {program}: {error}: install it beside `penstock`")]
    Start {
        /// The program.
        program: PathBuf,
        /// The kernel's word.
        error: io::Error,
    },
    /// It ended at once, at its first start.
    #[error("the data plane ended at its first start ({0}): its message above says why")]
    First(ExitStatus),
    /// This process's own path is not known.
    #[error("cannot find the directory of this program: {0}")]
    Own(io::Error),
}

/// The arguments of `penstock-dataplane`.
pub fn arguments(config: &Config, region: &Path) -> Vec<String> {
    let hugepages = match config.memory.hugepages {
        HugePages::Auto => "auto",
        HugePages::On => "on",
        HugePages::Off => "off",
    };
    let dataplane = &config.dataplane;
    let cores = dataplane.cores.iter().map(u16::to_string).collect::<Vec<_>>().join(",");
    let mut list = vec![
        ("region", region.to_string_lossy().into_owned()),
        ("core", cores),
        ("control-core", dataplane.control_core.to_string()),
        ("idle", dataplane.idle.word().into()),
        ("hugepages", hugepages.into()),
        ("memory", config.memory.megabytes.to_string()),
        ("file-prefix", format!("penstock-{}", config.name)),
    ];
    if dataplane.engine != EngineChoice::Auto {
        list.push(("engine", dataplane.engine.word().into()));
    }
    if dataplane.spread != SpreadChoice::Auto {
        list.push(("spread", dataplane.spread.word().into()));
    }
    for (name, port) in &config.ports {
        list.push(("port", format!("{name}={}", port.device)));
        list.push(("mtu", format!("{name}={}", port.mtu)));
        if port.promiscuous {
            list.push(("promiscuous", name.clone()));
        }
    }
    list.into_iter().map(|(key, value)| format!("--{key}={value}")).collect()
}

/// The data plane's keeper.
#[derive(Debug)]
pub struct Supervisor {
    program: PathBuf,
    arguments: Vec<String>,
    region: PathBuf,
    restarts: Arc<AtomicU32>,
}

impl Supervisor {
    /// For the program beside this one.
    ///
    /// # Errors
    /// [`SuperviseError::Own`].
    pub fn new(config: &Config, region: &Path) -> Result<Supervisor, SuperviseError> {
        let own = std::env::current_exe().map_err(SuperviseError::Own)?;
        let program = own.with_file_name("penstock-dataplane");
        let arguments = arguments(config, region);
        Ok(Supervisor { program, arguments, region: region.into(), restarts: Arc::default() })
    }

    /// How often the data plane was started after its first start.
    pub fn restarts(&self) -> Arc<AtomicU32> {
        self.restarts.clone()
    }

    /// Keeps the data plane running until `stop` turns true, then stops it.
    ///
    /// # Errors
    /// Where it cannot be started, or ends at once at its first start.
    pub async fn run(self, mut stop: watch::Receiver<bool>) -> Result<(), SuperviseError> {
        let mut wait = WAIT.0;
        let mut first = true;
        loop {
            if let Some(pid) = running(&self.region) {
                log::info!("the data plane runs already as process {pid}: adopted");
                first = false;
                if !self.watch_foreign(&mut stop).await {
                    return Ok(());
                }
                log::warn!("the data plane is gone: starting it again");
                self.restarts.fetch_add(1, Ordering::Relaxed);
            }
            let started = Instant::now();
            let mut child = self.start()?;
            let status = tokio::select! {
                status = child.wait() => status,
                () = asked(&mut stop) => {
                    end(&mut child).await;
                    return Ok(());
                }
            };
            let status =
                status.map_err(|error| SuperviseError::Start { program: self.program.clone(), error })?;
            let well = started.elapsed() >= WELL;
            if first && !well && status.signal().is_none() {
                return Err(SuperviseError::First(status));
            }
            first = false;
            log::error!("the data plane ended ({status}): starting it again");
            self.restarts.fetch_add(1, Ordering::Relaxed);
            if well {
                wait = WAIT.0;
                continue;
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => wait = (wait * 2).min(WAIT.1),
                () = asked(&mut stop) => return Ok(()),
            }
        }
    }

    fn start(&self) -> Result<Child, SuperviseError> {
        // Its own process group, so that Ctrl-C reaches control alone, which stops the data plane in order.
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).stdin(Stdio::null()).process_group(0);
        command.spawn().map_err(|error| SuperviseError::Start { program: self.program.clone(), error })
    }

    /// Waits until a data plane that is no child of ours is gone (true), or stops it when it is time (false).
    async fn watch_foreign(&self, stop: &mut watch::Receiver<bool>) -> bool {
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {
                    if running(&self.region).is_none() {
                        return true;
                    }
                }
                () = asked(stop) => {
                    stop_foreign(&self.region).await;
                    return false;
                }
            }
        }
    }
}

/// The process of the data plane that runs on `region`.
fn running(region: &Path) -> Option<Pid> {
    let state = StateView::open(region).ok()?;
    let pid = Pid::from_raw(i32::try_from(state.pid()).ok()?)?;
    state.data_plane_lives().then_some(pid)
}

/// Waits until it is time to stop; also when nobody is left to say so.
async fn asked(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn end(child: &mut Child) {
    if let Some(pid) = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)) {
        let _ = kill_process(pid, Signal::TERM);
    }
    if tokio::time::timeout(PATIENCE, child.wait()).await.is_err() {
        log::warn!("the data plane does not stop: killed");
        let _ = child.kill().await;
    }
}

async fn stop_foreign(region: &Path) {
    let until = Instant::now() + PATIENCE;
    let mut signal = Signal::TERM;
    while let Some(pid) = running(region) {
        let _ = kill_process(pid, signal);
        tokio::time::sleep(LOOK).await;
        if Instant::now() >= until {
            signal = Signal::KILL;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Machine;

    #[test]
    fn the_data_plane_is_told_what_the_file_says() {
        let text = "name: x\nmemory: {hugepages: off, megabytes: 128}\ndataplane: {cores: [1, 2], engine: reference}\n\
                    ports:\n  wan: {device: \"net_tap0,iface=t\", promiscuous: true}\n  lan: {device: 0000:3b:00.1, mtu: 9000}\n";
        let machine = Machine { cores: vec![0, 1, 2], interfaces: Vec::new() };
        let config = Config::parse(Path::new("x.yaml"), text, &machine).expect("good").config;
        let expected = "--region=/r --core=1,2 --control-core=0 --idle=adaptive --hugepages=off --memory=128 \
                        --file-prefix=penstock-x --engine=reference --port=lan=0000:3b:00.1 --mtu=lan=9000 \
                        --port=wan=net_tap0,iface=t --mtu=wan=1500 --promiscuous=wan";
        assert_eq!(arguments(&config, Path::new("/r")).join(" "), expected);
    }
}
