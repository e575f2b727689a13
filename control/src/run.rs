//! The running control process: wires gateway, mirror, twins, local socket, metrics and the data plane's keeper together,
//! until a signal or an error ends it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use penstock_ike::Datagram;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::MissedTickBehavior;

use crate::api::server::{Call, Server};
use crate::api::types::{Answer, Applied, Response};
use crate::carrier::Carriers;
use crate::config::{Checked, Listen};
use crate::gateway::{Gateway, GatewayError};
use crate::neighbours;
use crate::netlink::{Mirror, MirrorError};
use crate::scrape;
use crate::supervise::{SuperviseError, Supervisor};
use crate::telemetry;
use crate::twins::{RouteSpec, TwinError, TwinSpec, Twins};

/// How often hints and counters are looked at.
const TICK: Duration = Duration::from_millis(20);
/// How often slots that are going away are looked at while new SAs wait for them.
const SETTLE: Duration = Duration::from_millis(1);
/// How often twins that could not be made are tried again, and forwarding is held off.
const RETRY: Duration = Duration::from_secs(1);

/// Why the gateway ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Region, journal or secrets.
    #[error(transparent)]
    Gateway(#[from] GatewayError),
    /// The kernel cannot be followed.
    #[error(transparent)]
    Mirror(#[from] MirrorError),
    /// Twins cannot be managed.
    #[error(transparent)]
    Twin(#[from] TwinError),
    /// The data plane does not run.
    #[error(transparent)]
    Supervise(#[from] SuperviseError),
    /// The local socket.
    #[error("cannot listen on {path}: {error}")]
    Socket {
        /// Its file.
        path: PathBuf,
        /// The kernel's word.
        error: io::Error,
    },
    /// The metrics' port.
    #[error("cannot serve metrics on {address}: {error}: set metrics.listen to another address, or to off")]
    Metrics {
        /// The address.
        address: std::net::SocketAddr,
        /// The kernel's word.
        error: io::Error,
    },
    /// Signals.
    #[error("cannot wait for signals: {0}")]
    Signals(io::Error),
}

/// The local socket of the gateway called `name`.
pub fn socket(name: &str) -> PathBuf {
    Path::new("/run/penstock").join(name).join("api.sock")
}

/// Runs a gateway until SIGINT or SIGTERM; SIGHUP reads the configuration again. With `supervise` the data plane is started,
/// kept running, and stopped at the end, and then nothing is left behind. Without, everything is left as it is.
///
/// # Errors
/// [`RunError`].
pub async fn run(checked: Checked, name: Option<String>, supervise: bool) -> Result<(), RunError> {
    let signals = Signals::new().map_err(RunError::Signals)?;
    let mut gateway = Gateway::open(checked, name)?;
    let path = socket(&gateway.config().name);
    let server = Server::bind(&path).map_err(|error| RunError::Socket { path, error })?;
    let (calls, called) = mpsc::channel(64);
    let serving = tokio::spawn(server.run(calls));
    let (snapshots, scraped) = mpsc::channel(4);
    let metrics = match gateway.config().metrics.listen {
        Listen::Off => None,
        Listen::At(address) => {
            let allowed = gateway.config().metrics.allow.iter().map(|net| net.0).collect();
            let server = scrape::Server::bind(address).await;
            let server = server.map_err(|error| RunError::Metrics { address, error })?;
            Some(tokio::spawn(server.allow(allowed).run(snapshots.clone())))
        }
    };
    let twins = Kernel {
        twins: Twins::open(&gateway.config().name)?,
        applied: None,
        tried: None,
        held: Instant::now(),
        carriers: Carriers::default(),
    };
    let limits =
        neighbours::raise_limits(Path::new(neighbours::LIMITS), gateway.config().capacity.neighbours);
    limits.unwrap_or_else(|problem| log::warn!("{problem}"));
    let mirror = Mirror::open().await?;
    let (stop, stopped) = watch::channel(false);
    let keeper = match supervise {
        true => {
            let supervisor = Supervisor::new(gateway.config(), gateway.region())?;
            gateway.count_restarts(supervisor.restarts());
            Some(tokio::spawn(supervisor.run(stopped)))
        }
        false => None,
    };
    log::info!("gateway {} runs, region {}", gateway.config().name, gateway.region().display());
    let received = gateway.take_received();
    let mut process = Process { gateway, mirror, twins, signals };
    let (mut keeper, mut received) = (keeper, received);
    let result = process.serve(called, scraped, &mut received, &mut keeper).await;
    let rest = if supervise { "both processes end" } else { "the data plane goes on" };
    process.gateway.happened("control-down", None, rest);
    serving.abort();
    if let Some(metrics) = metrics {
        metrics.abort();
    }
    // As long as the data plane still carries what is said. Where everything stays, nobody takes leave.
    if let (true, Ok(()), Some(received)) = (supervise, &result, &mut received) {
        process.gateway.close(received).await;
    }
    let _ = stop.send(true);
    if let Some(keeper) = keeper {
        let _ = keeper.await;
    }
    if supervise {
        process.end().await;
    }
    result
}

type Reply = oneshot::Sender<std::sync::Arc<telemetry::Snapshot>>;
type Received = Option<mpsc::Receiver<Datagram>>;
type Keeper = Option<tokio::task::JoinHandle<Result<(), SuperviseError>>>;

struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> io::Result<Signals> {
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }
}

/// The twins and what was last made of them.
struct Kernel {
    twins: Twins,
    applied: Option<(Vec<TwinSpec>, Vec<RouteSpec>)>,
    tried: Option<Instant>,
    held: Instant,
    carriers: Carriers,
}

struct Process {
    gateway: Gateway,
    mirror: Mirror,
    twins: Kernel,
    signals: Signals,
}

impl Process {
    async fn serve(
        &mut self,
        mut called: mpsc::Receiver<Call>,
        mut scraped: mpsc::Receiver<Reply>,
        received: &mut Received,
        keeper: &mut Keeper,
    ) -> Result<(), RunError> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.gateway.kernel_changed(&self.mirror);
        let mut scrape = None;
        let mut held: Vec<(oneshot::Sender<Response>, Applied)> = Vec::new();
        loop {
            if !self.gateway.is_settling() {
                for (reply, applied) in held.drain(..) {
                    let applied = Applied { problems: self.gateway.problems(), ..applied };
                    let _ = reply.send(Response::Ok(Answer::Applied(applied)));
                }
            }
            tokio::select! {
                _ = tick.tick() => {
                    self.gateway.tick(&mut self.mirror);
                    // However busy all else is.
                    scrape = scrape.and_then(|scrape| self.gateway.scrape_on(scrape));
                    self.follow_twins().await;
                    self.follow_carriers().await;
                }
                changed = self.mirror.changed() => match changed {
                    Ok(_) => self.gateway.kernel_changed(&self.mirror),
                    Err(error) => {
                        log::error!("{error}");
                        self.mirror = Mirror::open().await?;
                        self.gateway.kernel_changed(&self.mirror);
                    }
                },
                Some((first, more)) = arrived(received) => self.gateway.received(first, more),
                Some(call) = called.recv() => match self.gateway.answer(&call.request) {
                    // It is said when it is so.
                    Response::Ok(Answer::Applied(applied)) => held.push((call.reply, applied)),
                    response => {
                        let _ = call.reply.send(response);
                    }
                },
                () = tokio::time::sleep(SETTLE), if self.gateway.is_settling() => self.gateway.settle_on(),
                Some(first) = scraped.recv(), if scrape.is_none() => {
                    let waiting = std::iter::from_fn(|| scraped.try_recv().ok());
                    scrape = Some(self.gateway.scrape(std::iter::once(first).chain(waiting).collect()));
                }
                _ = tokio::task::yield_now(), if scrape.is_some() => {
                    scrape = scrape.and_then(|scrape| self.gateway.scrape_on(scrape));
                }
                _ = self.signals.hangup.recv() => match self.gateway.apply() {
                    Ok(applied) => log::info!("configuration applied: {:?}", applied.tunnels),
                    Err(error) => log::error!("configuration not applied: {error}"),
                },
                _ = self.signals.interrupt.recv() => return Ok(()),
                _ = self.signals.terminate.recv() => return Ok(()),
                ended = ended(keeper) => return Ok(ended?),
            }
        }
    }

    /// Makes the kernel's twins those of the gateway, where they differ from what was made last.
    async fn follow_twins(&mut self) {
        let Some(wanted) = self.gateway.twins() else { return };
        let kernel = &mut self.twins;
        if kernel.held.elapsed() >= RETRY {
            kernel.held = Instant::now();
            let names = wanted.0.iter().map(|twin| twin.name.as_str());
            if let Ok(found) = kernel.twins.hold_forwarding(names)
                && !found.is_empty()
            {
                log::warn!("something let the kernel forward on {}: turned off again", found.join(", "));
            }
        }
        let waits = kernel.tried.is_some_and(|tried| tried.elapsed() < RETRY);
        if kernel.applied.as_ref() == Some(&wanted) || waits {
            return;
        }
        let result = kernel.twins.apply(&wanted.0, &wanted.1).await;
        let problems = match result {
            Ok(_) => {
                (kernel.applied, kernel.tried) = (Some(wanted), None);
                Vec::new()
            }
            Err(error) => {
                kernel.tried = Some(Instant::now());
                vec![error.to_string()]
            }
        };
        self.gateway.note("twins", problems);
    }

    /// Gives twins their carriers.
    async fn follow_carriers(&mut self) {
        let Kernel { carriers, twins, .. } = &mut self.twins;
        let result = carriers.follow(&self.gateway, self.mirror.kernel(), twins).await;
        self.gateway.note("carriers", result.err().map(|error| error.to_string()).into_iter().collect());
    }

    /// Leaves nothing behind, neither keys nor devices.
    async fn end(self) {
        if let Err(error) = self.twins.twins.remove().await {
            log::warn!("{error}");
        }
        if let Err(error) = self.gateway.remove() {
            log::warn!("{error}");
        }
    }
}

/// Waits for a datagram of a peer; for ever where none will come.
async fn arrived(received: &mut Received) -> Option<(Datagram, &mut mpsc::Receiver<Datagram>)> {
    match received {
        None => std::future::pending().await,
        Some(more) => more.recv().await.map(|first| (first, more)),
    }
}

/// Waits for the keeper's end; for ever where there is none.
async fn ended(keeper: &mut Keeper) -> Result<(), SuperviseError> {
    match keeper {
        None => std::future::pending().await,
        Some(handle) => {
            let result = handle.await;
            *keeper = None;
            result.unwrap_or(Ok(()))
        }
    }
}
