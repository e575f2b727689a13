//! A gateway in the lab: a configuration enters, two processes run; asked through the command line, as an operator would.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use super::command::{self, inside, succeed, text, until};
use super::lab::{Lab, Site};

/// How long a gateway may take to start on a busy machine of two cores.
const START: Duration = Duration::from_secs(60);

/// A program of the workspace: beside this test's own build, or in PENSTOCK_BIN.
pub fn program(name: &str) -> PathBuf {
    let folder = std::env::var_os("PENSTOCK_BIN").map(PathBuf::from).unwrap_or_else(|| {
        let test = std::env::current_exe().expect("a test knows its own path");
        test.parent().and_then(Path::parent).expect("target/PROFILE/deps/TEST").to_path_buf()
    });
    let path = folder.join(name);
    assert!(path.exists(), "{} is not built: cargo build --workspace", path.display());
    path
}

/// The configuration of a gateway, without its tunnels.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Which one.
    pub site: Site,
    /// The value of `memory`, as YAML.
    pub memory: String,
    /// The entries below `tunnels`, as YAML with an indentation of two.
    pub tunnels: String,
    /// Other top-level entries, as YAML.
    pub more: String,
    /// Tunnels that there is room for.
    pub room: u32,
    /// The workers' cores, where they should not be one for each site.
    pub cores: Option<&'static str>,
}

impl Setup {
    /// Without huge pages, on Ethernet's usual MTU.
    pub fn new(site: Site, tunnels: impl Into<String>) -> Setup {
        let memory = "{hugepages: off, megabytes: 128}".into();
        Setup { site, memory, tunnels: tunnels.into(), more: String::new(), room: 16, cores: None }
    }

    /// The whole file.
    pub fn yaml(&self, lab: &Lab) -> String {
        let (site, number) = (self.site.letter(), self.site.number());
        let (prefix, folder) = (lab.prefix(), lab.folder().display());
        // The two gateways start on different cores; the machine may have only two.
        let (worker, other) = if number == 1 { (1, 0) } else { (0, 1) };
        format!(
            "name: {prefix}-{site}\n\
             lab: {lab}\n\
             state_directory: {folder}/state-{site}\n\
             memory: {memory}\n\
             dataplane: {{{cores}, idle: adaptive}}\n\
             capacity: {{tunnels: {room}, routes: 16384, neighbours: 256}}\n\
             ports:\n\
             \x20 lan: {{device: \"net_tap0,iface=tlan,mac={lan}\", addresses: [10.{number}.0.1/24]}}\n\
             \x20 wan: {{device: \"net_tap1,iface=twan,mac={wan}\", addresses: [192.0.2.{number}/24]}}\n\
             {more}\
             tunnels:\n{tunnels}",
            cores = match self.cores {
                Some(cores) => format!("cores: {cores}"),
                None => format!("cores: [{worker}], control_core: {other}"),
            },
            room = self.room,
            lan = mac(self.site, "lan"),
            wan = mac(self.site, "wan"),
            // Keys that are negotiated need no laboratory.
            lab = self.tunnels.contains("lab_keys:") || self.more.contains("save_keys:"),
            memory = self.memory,
            more = self.more,
            tunnels = self.tunnels,
        )
    }
}

/// MAC address of a port. A soft NIC would get a new one at each start, which no real NIC does.
pub fn mac(site: Site, port: &str) -> String {
    format!("02:00:00:00:0{}:{}", site.number(), if port == "lan" { "01" } else { "f1" })
}

/// A tunnel from `site` to the other one with keys from the lab's secret.
pub fn secret_tunnel(lab: &Lab, site: Site, options: &str) -> String {
    let secret = lab.file("lab.secret");
    if !secret.exists() {
        // The same on both sides; told to nobody outside of this test.
        fs::write(&secret, "0123456789abcdef0123456789abcdef0123456789abcdef")
            .expect("the lab's folder is ours");
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).expect("it is ours");
    }
    tunnel(site, &format!("lab_keys: {{secret_file: {}}}", secret.display()), options)
}

/// A tunnel from `site` to the other one with the given `lab_keys`.
pub fn tunnel(site: Site, keys: &str, options: &str) -> String {
    let (own, other) = (site.number(), site.other().number());
    format!(
        "  site:\n\
         \x20   peer: {peer}\n\
         \x20   local_prefixes: [10.{own}.0.0/24]\n\
         \x20   remote_prefixes: [10.{other}.0.0/24]\n\
         \x20   {keys}\n\
         {options}",
        peer = site.other().outer(),
        options = options.lines().map(|line| format!("    {line}\n")).collect::<String>(),
    )
}

/// Starts both gateways and waits until a ping has passed through their tunnel, so that no packet waits for ARP any more.
pub fn pair(lab: &Lab, setup: impl Fn(Site) -> Setup) -> [Gateway; 2] {
    let gateways = Site::BOTH.map(|site| Gateway::start(lab, &setup(site)));
    let through = |from: Site| until(START, || lab.ping(from, &from.other().host(), 1) == 1);
    for site in Site::BOTH {
        assert!(
            through(site),
            "no ping from site {site:?} was answered: {:#}",
            gateways[0].json(&["status"])
        );
    }
    gateways
}

/// A gateway whose `penstock up` was started.
pub struct Gateway {
    namespace: String,
    name: String,
    site: Site,
    config: PathBuf,
    log: PathBuf,
    control: Child,
}

impl Gateway {
    /// Writes the configuration, starts both processes and waits until they run and their ports are in place.
    pub fn start(lab: &Lab, setup: &Setup) -> Gateway {
        let gateway = Gateway::launch(lab, setup);
        lab.plug(setup.site);
        gateway
    }

    /// As [`Gateway::start`], but leaves the kernel ends of the ports where they are.
    pub fn launch(lab: &Lab, setup: &Setup) -> Gateway {
        let site = setup.site;
        let config = lab.file(&format!("{}.yaml", site.letter()));
        fs::write(&config, setup.yaml(lab)).expect("the lab's folder is ours");
        let (namespace, log) = (lab.gateway(site), lab.file(&format!("{}.log", site.letter())));
        let control = up(&namespace, &config, &log);
        let name = format!("{}-{}", lab.prefix(), site.letter());
        let mut gateway = Gateway { namespace, name, site, config, log, control };
        gateway.wait();
        gateway
    }

    /// Waits until both processes run.
    pub fn wait(&mut self) {
        let running = until(START, || {
            let ended = self.control.try_wait().expect("it is our child");
            assert!(ended.is_none(), "penstock up ended ({ended:?}):\n{}", self.said());
            self.dataplane().is_some() && command::output(&mut self.command(&["status"])).status.success()
        });
        assert!(running, "the gateway does not run after {START:?}:\n{}", self.said());
    }

    /// A `penstock` command on this gateway.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = inside(&self.namespace, &program("penstock").display().to_string());
        command.arg("--config").arg(&self.config).args(arguments);
        command
    }

    /// Runs a `penstock` command that must succeed and returns what it printed.
    pub fn run(&self, arguments: &[&str]) -> String {
        succeed(&mut self.command(arguments))
    }

    /// The same, as JSON.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let said = succeed(self.command(arguments).arg("--json"));
        serde_json::from_str(&said).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {said}"))
    }

    /// Replaces the configuration and has the running gateway read it.
    pub fn apply(&self, lab: &Lab, setup: &Setup) {
        fs::write(&self.config, setup.yaml(lab)).expect("the lab's folder is ours");
        self.run(&["apply"]);
    }

    /// The site that it stands at.
    pub fn site(&self) -> Site {
        self.site
    }

    /// The name in its configuration.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its configuration file.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Its network namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// What both processes have logged.
    pub fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Process id of the data plane.
    pub fn dataplane(&self) -> Option<u32> {
        let pids = succeed(Command::new("ip").args(["netns", "pids", &self.namespace]));
        let mut pids = pids.split_whitespace().filter_map(|pid| pid.parse().ok());
        // The kernel keeps 15 octets of a program's name.
        pids.find(|pid| {
            fs::read_to_string(format!("/proc/{pid}/comm"))
                .is_ok_and(|name| name.starts_with("penstock-datap"))
        })
    }

    /// Open files of the data plane on which the kernel signals (O_ASYNC).
    pub fn files_that_signal(&self) -> usize {
        const O_ASYNC: u32 = 0o20000;
        let pid = self.dataplane().expect("the data plane runs");
        let files = fs::read_dir(format!("/proc/{pid}/fdinfo")).expect("it runs").flatten();
        let signals = |text: &String| {
            let flags = text.lines().find_map(|line| line.strip_prefix("flags:")).unwrap_or_default();
            u32::from_str_radix(flags.trim(), 8).expect("octal flags") & O_ASYNC != 0
        };
        files.filter_map(|file| fs::read_to_string(file.path()).ok()).filter(signals).count()
    }

    /// Process id of control.
    pub fn control(&self) -> u32 {
        self.control.id()
    }

    /// Control, as the child that it is.
    pub fn control_child(&mut self) -> &mut Child {
        &mut self.control
    }

    /// Kills control as a crash would. The data plane is not told.
    pub fn kill_control(&mut self) {
        self.control.kill().expect("it is our child");
        self.control.wait().expect("it is our child");
    }

    /// Starts control again and waits until it runs.
    pub fn restart_control(&mut self) {
        self.control = up(&self.namespace, &self.config, &self.log);
        self.wait();
    }

    /// Kills the data plane as a crash would and waits until it runs again. Returns when it was killed and when the new
    /// one was there.
    pub fn kill_dataplane(&mut self) -> (Instant, Instant) {
        let old = self.dataplane().expect("the data plane runs");
        let killed = Instant::now();
        command::signal(old, Signal::KILL);
        let back = until(START, || self.dataplane().is_some_and(|new| new != old));
        assert!(back, "nobody started the data plane again:\n{}", self.said());
        (killed, Instant::now())
    }

    /// Stops it as Ctrl-C does and waits; both processes must end, cleanly.
    pub fn stop(mut self) {
        assert!(command::end(&mut self.control, Signal::INT), "penstock up ignores Ctrl-C:\n{}", self.said());
        let status = self.control.wait().expect("it is our child");
        assert!(status.success(), "penstock up ended with {status}:\n{}", self.said());
        let gone = until(Duration::from_secs(5), || self.dataplane().is_none());
        assert!(gone, "the data plane outlived `penstock up`:\n{}", self.said());
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let said = self.said();
            let from = said.len().saturating_sub(4000);
            eprintln!("--- {} said:\n{}", self.name, text(&said.as_bytes()[from..]));
        }
        if matches!(self.control.try_wait(), Ok(None)) {
            command::end(&mut self.control, Signal::INT);
        }
        if let Some(pid) = self.dataplane() {
            command::signal(pid, Signal::KILL);
        }
    }
}

fn up(namespace: &str, config: &Path, log: &Path) -> Child {
    let file = File::options().create(true).append(true).open(log).expect("the lab's folder is ours");
    let mut command = inside(namespace, &program("penstock").display().to_string());
    command.arg("--config").arg(config).arg("up").stdin(Stdio::null());
    command.stdout(file.try_clone().expect("a file")).stderr(file);
    command.spawn().expect("it is built")
}
