//! The control process: a configuration, the kernel's news, the data plane's hints, clients' requests and signals enter,
//! changes of the tables leave. One thread; everything that it owns it changes itself.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::{Duration, Instant};

use penstock_tables::adjacency::PortSpec;
use penstock_tables::segment::RegionError;
use penstock_tables::{StateView, TablesWriter};

use crate::api::types::Applied;
use crate::config::{self, Checked, Config, Machine};
use crate::events::Events;
use crate::history::{History, Notices};
use crate::ike::{Configured, ConnectionError, Ike, configured};
use crate::neighbours::Neighbours;
use crate::netlink::Mirror;
use crate::publish::journal::{Journal, JournalError};
use crate::publish::live::Live;
use crate::publish::plan::{Plan, PlanError, plans};
use crate::publish::routes::{KernelView, Routes};
use crate::publish::tunnels::{Changes, Tunnels};
use crate::publish::view::TwinIndex;
use crate::region;
use crate::telemetry::{AppliedTimes, Round};
use crate::twins::{RouteSpec, TwinKind, TwinSpec};

/// How often the state segment's file is looked for, or looked at.
const LOOK: Duration = Duration::from_millis(100);
/// How long slots that are going away are waited for, where new SAs need them at once.
const GRACE: Duration = Duration::from_millis(100);
/// How often installing what found no room is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Metric of the routes of the file: before those of routing protocols.
const METRIC: u32 = 10;

/// Why control cannot run.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The shared region.
    #[error(transparent)]
    Region(#[from] RegionError),
    /// Where the region should stand.
    #[error(transparent)]
    Place(#[from] region::NoHugetlbfs),
    /// The journal of granted numbers.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The tunnels' secrets.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The tunnels' peers.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// A configuration that cannot be applied while running.
    #[error("{0} cannot change while the gateway runs: restart it, or restore {0}")]
    Restart(&'static str),
}

/// One gateway.
#[derive(Debug)]
pub struct Gateway {
    pub(crate) checked: Checked,
    pub(crate) name: Option<String>,
    pub(crate) started: Instant,
    pub(crate) tables: TablesWriter,
    pub(crate) state: Option<StateView>,
    pub(crate) events: Events,
    pub(crate) tunnels: Tunnels,
    pub(crate) view: KernelView,
    pub(crate) neighbours: Neighbours,
    pub(crate) restarts: Arc<AtomicU32>,
    pub(crate) failures: BTreeSet<String>,
    pub(crate) ike: Ike,
    pub(crate) dirty: bool,
    pub(crate) round: Round,
    pub(crate) applied: AppliedTimes,
    pub(crate) history: History,
    pub(crate) notices: Notices,
    region: PathBuf,
    plans: BTreeMap<String, Plan>,
    routes: Routes,
    twins: TwinIndex,
    epoch: Option<u32>,
    incomplete: Option<Instant>,
    looked: Option<Instant>,
    unread: Option<Instant>,
    /// Until when slots that are going away are waited for, before what is missing is installed.
    settling: Option<Instant>,
    /// The connections that the machine follows from then on.
    wanted: Option<BTreeMap<Arc<str>, Configured>>,
    /// Since when the tables lack what found no room.
    unpublished: Option<Instant>,
}

impl Gateway {
    /// Takes the role of control: makes the tables, or adopts those that are there.
    ///
    /// # Errors
    /// [`GatewayError`], each saying what to do.
    pub fn open(checked: Checked, name: Option<String>) -> Result<Gateway, GatewayError> {
        let config = &checked.config;
        let region = region::directory(config)?;
        let plans = plans(config)?;
        let connections = configured(config)?;
        let tables = TablesWriter::open(&region, region::capacity(config))?;
        let journal = Journal::open(&config.state_directory())?;
        let routes = Routes::adopt(&tables);
        let mut gateway = Gateway {
            ike: Ike::new(config),
            history: History::open(&config.state_directory()),
            checked,
            name,
            started: Instant::now(),
            tables,
            state: None,
            events: Events::default(),
            tunnels: Tunnels::new(journal),
            view: KernelView::default(),
            neighbours: Neighbours::default(),
            restarts: Arc::default(),
            failures: BTreeSet::new(),
            region,
            plans,
            routes,
            twins: TwinIndex::default(),
            epoch: None,
            dirty: false,
            round: Round::default(),
            applied: AppliedTimes::default(),
            notices: Notices::default(),
            incomplete: None,
            looked: None,
            unread: None,
            settling: None,
            wanted: None,
            unpublished: None,
        };
        gateway.remember_applied(true);
        let about = format!("version {}, process {}", env!("CARGO_PKG_VERSION"), std::process::id());
        gateway.happened("control-up", None, &about);
        gateway.publish_ports();
        gateway.follow_connections(connections);
        Ok(gateway)
    }

    /// The configuration in use.
    pub fn config(&self) -> &Config {
        &self.checked.config
    }

    /// Where the shared region stands.
    pub fn region(&self) -> &Path {
        &self.region
    }

    /// Counts restarts of the data plane from now on.
    pub fn count_restarts(&mut self, restarts: Arc<AtomicU32>) {
        self.restarts = restarts;
    }

    /// What is due every few milliseconds.
    pub fn tick(&mut self, mirror: &mut Mirror) {
        self.follow_state();
        self.notice();
        let Some(state) = &self.state else { return self.settle_on() };
        let news = self.events.drain(state);
        let problems = self.tunnels.watch(&mut self.tables, state);
        self.note("rekey", problems);
        self.tables.reclaim(self.state.as_ref());
        self.settle_on();
        if self.incomplete.is_some_and(|since| since.elapsed() >= RETRY) {
            self.fill();
        }
        self.tick_ike(&news);
        self.look_at_tunnels();
        self.neighbours.ask(news.neighbours, &self.twins, mirror);
        let changed = self.dirty || self.unpublished.is_some_and(|since| since.elapsed() >= RETRY);
        if changed {
            self.publish_routes();
            self.neighbours.lose(self.routes.take_lost(), &self.twins, mirror);
        }
        if changed || self.neighbours.is_due() {
            self.neighbours.keep(self.routes.neighbours(), &self.twins, mirror);
        }
    }

    /// The kernel changed, or the twins did.
    pub fn kernel_changed(&mut self, mirror: &Mirror) {
        let kernel = mirror.kernel();
        let interfaces = self.checked.config.tunnels.values().filter_map(|tunnel| tunnel.interface.as_ref());
        self.twins = TwinIndex::find(kernel, self.checked.config.ports.keys(), interfaces);
        self.neighbours.follow(&self.twins, kernel);
        let view = self.twins.view(kernel);
        if view != self.view {
            self.view = view;
            self.dirty = true;
        }
    }

    /// Reads the file again and makes it so. Tunnels that did not change lose nothing.
    ///
    /// # Errors
    /// What is wrong with the file, or what cannot change while running; nothing was changed then.
    pub fn apply(&mut self) -> Result<Applied, String> {
        let result = self.read_again();
        self.remember_applied(result.is_ok());
        self.applied(&result);
        result
    }

    fn remember_applied(&mut self, good: bool) {
        let now = self.moment().unix;
        let last_good = if good { now } else { self.applied.last_good };
        self.applied = AppliedTimes { last: now, last_good, good };
    }

    fn read_again(&mut self) -> Result<Applied, String> {
        let mut checked =
            Config::load(&self.checked.file, &Machine::this()).map_err(|error| error.to_string())?;
        if let Some(name) = &self.name {
            checked.config.name.clone_from(name);
        }
        unchangeable(&self.checked.config, &checked.config).map_err(|error| error.to_string())?;
        let plans = plans(&checked.config).map_err(|error| error.to_string())?;
        let connections = configured(&checked.config).map_err(|error| error.to_string())?;
        (self.plans, self.checked) = (plans, checked);
        self.publish_ports();
        self.part_from(&connections);
        self.wanted = Some(connections);
        let changes = self.settle(false);
        let warnings = self.checked.warnings.clone();
        Ok(Applied { tunnels: changes, warnings, problems: self.problems() })
    }

    /// What is not as it should be.
    pub fn problems(&self) -> Vec<String> {
        self.failures.iter().cloned().collect()
    }

    /// The twins and routes that the kernel should have; `None` until the data plane has told the MAC addresses of all
    /// ports, since a twin without its port's would confuse the neighbours.
    pub fn twins(&self) -> Option<(Vec<TwinSpec>, Vec<RouteSpec>)> {
        let (config, state) = (&self.checked.config, self.state.as_ref()?);
        let mut twins = Vec::new();
        for (index, (name, port)) in config.ports.iter().enumerate() {
            twins.push(TwinSpec {
                name: name.clone(),
                kind: TwinKind::Tap,
                mac: Some(state.ports().get(index)?.get()?.mac),
                mtu: port.mtu,
                addresses: port.addresses.iter().map(|own| own.0).collect(),
            });
        }
        // Most of many tunnels have none, and this is asked often.
        let with_interface = config.tunnels.iter().filter(|(_, tunnel)| tunnel.interface.is_some());
        for (name, tunnel) in with_interface {
            let (Some(interface), Some(plan)) = (&tunnel.interface, self.plans.get(name)) else { continue };
            let spec = self.tunnels.get(name).map_or(&plan.spec, Live::spec);
            twins.push(TwinSpec {
                name: interface.clone(),
                kind: TwinKind::Tun,
                mac: None,
                mtu: spec.inner_mtu,
                addresses: tunnel.interface_addresses.iter().map(|own| own.0).collect(),
            });
        }
        let route = |route: &config::Route| RouteSpec {
            to: route.to.0,
            via: Some(route.via.0),
            twin: None,
            metric: METRIC,
        };
        Some((twins, config.routes.iter().map(route).collect()))
    }

    /// Whether the operator keeps a tunnel down.
    pub(crate) fn is_held(&self, tunnel: &str) -> bool {
        self.ike.held.contains(tunnel)
    }

    /// The interfaces of ports, with the ports.
    pub(crate) fn twins_of_ports(&self) -> impl Iterator<Item = (u32, u8)> {
        self.twins.ports()
    }

    /// The interfaces of tunnels, with the tunnels' names.
    pub(crate) fn twins_of_tunnels(&self) -> impl Iterator<Item = (u32, &str)> {
        let tunnels = self.checked.config.tunnels.iter();
        let named = tunnels.filter_map(|(name, tunnel)| Some((tunnel.interface.as_deref()?, name.as_str())));
        let owners: std::collections::HashMap<&str, &str> = named.collect();
        self.twins.tunnels().filter_map(move |(index, interface)| Some((index, *owners.get(interface)?)))
    }

    /// A clean end of both processes: wipes every key.
    ///
    /// # Errors
    /// Where the tables' file cannot be removed.
    pub fn remove(self) -> Result<(), RegionError> {
        let Gateway { tables, state, region, .. } = self;
        tables.remove()?;
        // Numbers and windows, no secrets. What was granted stands in the journal. A file that was never ours stays.
        if state.is_some() {
            let _ = std::fs::remove_file(region.join("state"));
        }
        let _ = std::fs::remove_dir(&region);
        Ok(())
    }

    /// Opens the state segment when the data plane has made it, again when it was made anew.
    fn follow_state(&mut self) {
        let current = self.state.is_some();
        if self.looked.is_some_and(|looked| looked.elapsed() < LOOK) && current {
            return;
        }
        self.looked = Some(Instant::now());
        if self.state.as_ref().is_some_and(StateView::is_current) {
            return;
        }
        match StateView::open(&self.region) {
            Ok(state) => {
                let epoch = state.epoch();
                self.state = Some(state);
                self.unread = None;
                self.note("region", Vec::new());
                if self.epoch != Some(epoch) {
                    self.epoch = Some(epoch);
                    self.settle(true);
                }
            }
            Err(RegionError::Missing { .. }) => self.state = None,
            Err(error) => {
                self.state = None;
                // For an instant the data plane's new file has no header yet.
                if self.unread.get_or_insert_with(Instant::now).elapsed() >= RETRY {
                    self.note("region", vec![error.to_string()]);
                }
            }
        }
    }

    /// Makes tunnels, SAs and routes those of the plans. `anew`: the state segment is new to this process, so what stands
    /// in the tables is looked at first.
    fn settle(&mut self, anew: bool) -> Changes {
        let Some(state) = &self.state else {
            self.settled();
            return Changes::default();
        };
        let mut leaving = Vec::new();
        if anew {
            self.tunnels.forget();
            leaving = self.tunnels.adopt(&mut self.tables, state, &self.plans);
        }
        let (changes, gone) = self.tunnels.prepare(&mut self.tables, state, &self.plans);
        leaving.extend(gone);
        // Before the new tunnels are there, so that no route leads to a slot that is given to another.
        self.publish_routes();
        leaving.into_iter().for_each(|slot| self.tables.retire_tunnel(slot));
        if anew {
            self.renew_lost();
        }
        self.settling = Some(Instant::now() + GRACE);
        if self.tables.reclaim(self.state.as_ref()) == 0 {
            self.settled();
        }
        changes
    }

    /// Whether slots are waited for before what is missing is installed: the loop asks again soon, and goes on.
    pub fn is_settling(&self) -> bool {
        self.settling.is_some()
    }

    /// Installs what is missing once the slots that were going away are free, or too late.
    pub fn settle_on(&mut self) {
        let Some(until) = self.settling else { return };
        let waits = self.state.is_some() && self.tables.reclaim(self.state.as_ref()) > 0;
        if !waits || Instant::now() >= until {
            self.settled();
        }
    }

    fn settled(&mut self) {
        self.settling = None;
        self.fill();
        if let Some(wanted) = self.wanted.take() {
            self.follow_connections(wanted);
        }
    }

    /// Installs what is missing, then the routes to it.
    fn fill(&mut self) {
        let Some(state) = &self.state else { return };
        let problems = match self.tunnels.fill(&mut self.tables, state, &self.plans) {
            Ok(problems) => problems,
            Err(error) => vec![error.to_string()],
        };
        self.incomplete = (!problems.is_empty()).then(Instant::now);
        self.note("tunnels", problems);
        self.publish_routes();
        self.dirty = true;
    }

    fn publish_routes(&mut self) {
        self.dirty = false;
        self.routes.prefer(self.neighbours.asked());
        let result = self.routes.publish(&mut self.tables, &self.view, &self.tunnels);
        self.unpublished = result.is_err().then(Instant::now);
        self.note("routes", result.err().map(|error| error.to_string()).into_iter().collect());
    }

    /// Tells the data plane of the ports.
    fn publish_ports(&self) {
        let config = &self.checked.config;
        for (index, (port, public)) in config.ports.values().zip(config.public_ports()).enumerate() {
            let address = port.addresses.first().map_or(0, |own| own.address().to_bits());
            let spec = PortSpec { address, vlan: port.vlan.unwrap_or(0), mtu: port.mtu, public };
            self.tables.port(index).set(spec);
            let others = port.addresses.iter().skip(1).map(|own| own.address().to_bits());
            self.tables.port(index).set_others(others);
        }
    }

    /// Replaces what is known to be wrong with one part; logs what is new.
    pub(crate) fn note(&mut self, part: &str, problems: Vec<String>) {
        let prefix = format!("{part}: ");
        let now: BTreeSet<String> = problems.into_iter().map(|problem| prefix.clone() + &problem).collect();
        now.difference(&self.failures).for_each(|problem| log::error!("{problem}"));
        self.failures.retain(|failure| !failure.starts_with(&prefix));
        self.failures.extend(now);
    }
}

/// Refuses what only a restart can change.
fn unchangeable(old: &Config, new: &Config) -> Result<(), GatewayError> {
    let ports = |config: &Config| -> Vec<(String, String, u16, bool)> {
        let ports = config.ports.iter();
        ports.map(|(name, port)| (name.clone(), port.device.clone(), port.mtu, port.promiscuous)).collect()
    };
    let changed = [
        ("name", old.name != new.name),
        ("state_directory", old.state_directory() != new.state_directory()),
        ("memory", old.memory != new.memory),
        ("dataplane", old.dataplane != new.dataplane),
        ("capacity", old.capacity != new.capacity),
        ("metrics", old.metrics != new.metrics),
        ("ports (names, devices, mtu, promiscuous)", ports(old) != ports(new)),
    ];
    match changed.into_iter().find(|(_, changed)| *changed) {
        Some((key, _)) => Err(GatewayError::Restart(key)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::sync::atomic::Ordering;

    use penstock_tables::StateOwner;

    use super::*;
    use crate::api::types::{Answer, Request, Response};

    fn write(folder: &Path, cipher: &str) -> PathBuf {
        let (file, secret) = (folder.join("a.yaml"), folder.join("secret"));
        std::fs::write(&secret, "0123456789abcdef0123456789abcdef").expect("written");
        std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o600)).expect("mode");
        let folder = folder.display();
        let text = format!(
            "name: a\nlab: true\nstate_directory: {folder}/kept\nmemory: {{hugepages: off, directory: {folder}}}\n\
             capacity: {{tunnels: 8, routes: 1024, neighbours: 32}}\nports:\n\
             \x20 lan: {{device: net_tap0, addresses: [10.1.0.1/24]}}\n\
             \x20 wan: {{device: net_tap1, addresses: [192.0.2.1/24]}}\n\
             tunnels:\n  b: {{peer: 192.0.2.2, local_prefixes: [10.1.0.0/24], remote_prefixes: [10.2.0.0/24], cipher: {cipher}, \
             lab_keys: {{secret_file: secret}}}}\n"
        );
        std::fs::write(&file, text).expect("written");
        file
    }

    fn seals(gateway: &Gateway) -> bool {
        gateway.tunnels.get("b").is_some_and(|live| live.outbound().is_some())
    }

    #[tokio::test]
    async fn the_loop_goes_on_while_slots_are_waited_for() {
        let folder = tempfile::tempdir().expect("temporary directory");
        let file = write(folder.path(), "aes128gcm16");
        let checked =
            Config::load(&file, &Machine { cores: vec![0, 1], interfaces: Vec::new() }).expect("good");
        let mut gateway = Gateway::open(checked, None).expect("opened");
        let capacity = region::capacity(gateway.config());
        let workers = StateOwner::open(gateway.region(), capacity, 1).expect("state");
        gateway.follow_state();
        assert!(!gateway.is_settling() && seals(&gateway), "nothing had to go first");
        // The keys change, and the worker is busy with a burst.
        write(folder.path(), "aes256gcm16");
        let applied = gateway.apply().expect("applied");
        assert_eq!(applied.tunnels.replaced, 1);
        assert!(gateway.is_settling() && !seals(&gateway));
        // All else is answered meanwhile.
        assert!(matches!(gateway.answer(&Request::Drops), Response::Ok(Answer::Drops(_))));
        gateway.settling = Some(Instant::now() + Duration::from_secs(3600));
        for _ in 0..5 {
            gateway.settle_on();
            assert!(gateway.is_settling() && !seals(&gateway));
        }
        for _ in 0..3 {
            workers.worker(0).quiescent.fetch_add(1, Ordering::Relaxed);
            gateway.settle_on();
        }
        assert!(!gateway.is_settling() && seals(&gateway));
        // A worker that never comes round does not keep the rest for ever.
        write(folder.path(), "aes128gcm16");
        gateway.apply().expect("applied");
        assert!(gateway.is_settling());
        gateway.settling = Some(Instant::now());
        gateway.settle_on();
        assert!(!gateway.is_settling() && seals(&gateway));
    }
}
