//! What tests of publication share: a gateway whose tables and state stand in a temporary directory, and a stand-in for its
//! workers.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::Ordering;

use penstock_control::config::{Config, Machine};
use penstock_control::publish::journal::Journal;
use penstock_control::publish::plan::{Plan, plans};
use penstock_control::publish::tunnels::{Changes, Tunnels};
use penstock_tables::{Capacity, StateOwner, StateView, TablesView, TablesWriter};
use tempfile::TempDir;

/// Room for a few tunnels.
pub const CAPACITY: Capacity = Capacity { tunnels: 8, replay_window: 1024, neighbours: 32, fib_groups: 64 };

/// What a configuration plans that stands in `directory`.
pub fn planned(directory: &Path, text: &str) -> BTreeMap<String, Plan> {
    let machine = Machine { cores: vec![0, 1], interfaces: Vec::new() };
    let checked =
        Config::parse(&directory.join("a.yaml"), text, &machine).unwrap_or_else(|error| panic!("{error}"));
    plans(&checked.config).expect("plans")
}

/// Control's and the data plane's parts of one gateway.
pub struct Gateway {
    pub directory: TempDir,
    pub plans: BTreeMap<String, Plan>,
    pub workers: StateOwner,
    pub state: StateView,
    pub tables: TablesWriter,
    pub tunnels: Tunnels,
}

impl Gateway {
    /// A new one, with a file `secret` beside its configuration.
    pub fn with(configuration: impl FnOnce(&Path) -> BTreeMap<String, Plan>) -> Gateway {
        let directory = tempfile::tempdir().expect("temporary directory");
        let secret = directory.path().join("secret");
        std::fs::write(&secret, "0123456789abcdef0123456789abcdef").expect("written");
        std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o600)).expect("mode");
        let plans = configuration(directory.path());
        Gateway::open(directory, plans)
    }

    /// The one that this directory keeps, or a new one.
    pub fn open(directory: TempDir, plans: BTreeMap<String, Plan>) -> Gateway {
        let tables = TablesWriter::open(directory.path(), CAPACITY).expect("tables");
        let workers = StateOwner::open(directory.path(), CAPACITY, 1).expect("state");
        let state = StateView::open(directory.path()).expect("view");
        let tunnels = Tunnels::new(Journal::open(&directory.path().join("kept")).expect("journal"));
        let mut gateway = Gateway { directory, plans, workers, state, tables, tunnels };
        gateway.settle();
        gateway
    }

    /// What a configuration that was read again does.
    pub fn settle(&mut self) -> Changes {
        let (changes, leaving) = self.tunnels.prepare(&mut self.tables, &self.state, &self.plans);
        leaving.into_iter().for_each(|slot| self.tables.retire_tunnel(slot));
        self.reclaim();
        let problems = self.tunnels.fill(&mut self.tables, &self.state, &self.plans).expect("journal");
        assert_eq!(problems, Vec::<String>::new());
        changes
    }

    /// The workers go round often enough for all that was retired to be free.
    pub fn reclaim(&mut self) {
        for _ in 0..3 {
            self.tables.reclaim(Some(&self.state));
            self.workers.worker(0).quiescent.fetch_add(1, Ordering::Relaxed);
        }
        assert_eq!(self.tables.reclaim(Some(&self.state)), 0);
    }

    /// Control dies and comes back. Says how many tunnels the file does not have any more.
    pub fn restart_control(self) -> (Gateway, usize) {
        let Gateway { directory, plans, workers, state, tables, tunnels } = self;
        drop((tables, tunnels));
        let mut tables = TablesWriter::open(directory.path(), CAPACITY).expect("adopted");
        let mut tunnels = Tunnels::new(Journal::open(&directory.path().join("kept")).expect("journal"));
        let leaving = tunnels.adopt(&mut tables, &state, &plans);
        let left = leaving.len();
        leaving.into_iter().for_each(|slot| tables.retire_tunnel(slot));
        let mut gateway = Gateway { directory, plans, workers, state, tables, tunnels };
        gateway.settle();
        (gateway, left)
    }

    /// What the data plane sees.
    pub fn view(&self) -> TablesView {
        TablesView::open(self.directory.path()).expect("view")
    }

    /// Seals up to `count` packets as a worker does: the SPI, and the numbers that it may have. `None` where the tunnel has no
    /// SA.
    pub fn seal(&self, count: u32) -> Option<(u32, Vec<u64>)> {
        let view = self.view();
        let mut tunnels = view.tunnels().peekable();
        tunnels.peek().expect("a tunnel");
        let slot = tunnels.find_map(|(_, tunnel)| tunnel.outbound())?;
        let (sa, _) = view.outbound(slot).expect("live");
        assert_eq!(sa.epoch(), self.workers.epoch());
        let mut run = self.workers.outbound(slot).reserve(count, sa.offset(), sa.hard_limit());
        Some((sa.spi()?, std::iter::from_fn(|| run.take()).collect()))
    }
}
