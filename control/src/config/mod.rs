//! The configuration: one YAML file enters, checked types leave, or complaints with line and column.
//!
//! [`types`] is the file's shape, [`scalar`] the form of single values, [`check`] what no type can say.

mod bounds;
pub mod check;
mod check_files;
mod check_ike;
mod check_tunnels;
mod error;
mod form;
pub mod ike;
pub mod ike_scalar;
mod locate;
pub mod reference;
pub mod scalar;
pub mod secret;
pub mod types;

use std::collections::HashSet;
use std::io::Read;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

pub use check::Machine;
pub use error::{Complaint, ConfigError};
pub use ike::{Ike, IkeGlobal, StartWhen, SuiteName};
pub use locate::Position;
pub use types::*;
use zeroize::Zeroizing;

/// A configuration that passed every check, and what is allowed but odd about it.
#[derive(Clone, Debug)]
pub struct Checked {
    /// The file as it was named.
    pub file: PathBuf,
    /// What it says.
    pub config: Config,
    /// Things that work but may not be meant, as `KEY: sentence`.
    pub warnings: Vec<String>,
}

impl Config {
    /// Reads and checks `file` for `machine`.
    ///
    /// # Errors
    /// Everything that is wrong with it, with line and column.
    pub fn load(file: &Path, machine: &Machine) -> Result<Checked, ConfigError> {
        let text = read(file)?;
        let Ok(text) = std::str::from_utf8(&text) else {
            return Err(ConfigError::unreadable(file, "is not UTF-8 text: not a configuration".into()));
        };
        Config::parse(file, text, machine)
    }

    /// The gateway's name as `file` says it; what is wrong with the rest, or that it cannot be read, is no hindrance.
    pub fn name_in(file: &Path) -> Option<String> {
        #[derive(serde::Deserialize)]
        struct Named {
            name: String,
        }
        let text = read(file).ok()?;
        let text = std::str::from_utf8(&text).ok().filter(|text| bounds::exceeded(text).is_none())?;
        serde_yaml::from_str::<Named>(text).ok().map(|named| named.name)
    }

    /// Checks `text` as the content of `file`; files that it names are taken relative to the directory of `file`.
    ///
    /// # Errors
    /// Everything that is wrong with it, with line and column.
    pub fn parse(file: &Path, text: &str, machine: &Machine) -> Result<Checked, ConfigError> {
        if let Some((position, message)) = bounds::exceeded(text) {
            return Err(ConfigError::exceeded(file, position, message));
        }
        let mut config: Config = match serde_yaml::from_str(text) {
            Ok(config) => config,
            Err(error) => return Err(ConfigError::from_yaml(file, text, &error)),
        };
        config.anchor_paths(file.parent().unwrap_or(Path::new("")));
        let mut found = check::Found::default();
        check_ike::take_shares(&mut config, &mut found);
        check::check(&config, machine, &mut found);
        if !found.errors.is_empty() {
            return Err(ConfigError::from_checks(file, text, found.errors));
        }
        Ok(Checked { file: file.into(), config, warnings: found.warnings })
    }

    /// Makes the paths of secrets absolute or relative to the working directory, as the file's own path is.
    fn anchor_paths(&mut self, directory: &Path) {
        for keys in self.tunnels.values_mut().filter_map(|tunnel| tunnel.lab_keys.as_mut()) {
            let fixed = [keys.outbound.as_mut(), keys.inbound.as_mut()];
            let files =
                fixed.into_iter().flatten().map(|key| &mut key.key_file).chain([&mut keys.secret_file]);
            for path in files.flatten() {
                *path = directory.join(&path);
            }
        }
        for ike in self.tunnels.values_mut().filter_map(|tunnel| tunnel.ike.as_mut()) {
            let single = [&mut ike.psk_file, &mut ike.certificate, &mut ike.key].into_iter().flatten();
            for path in single.chain(&mut ike.ca.0).chain(&mut ike.crl.0) {
                *path = directory.join(&path);
            }
        }
        self.ike.save_keys.iter_mut().for_each(|path| *path = directory.join(&path));
    }

    /// Where what must survive a reboot is kept.
    pub fn state_directory(&self) -> PathBuf {
        self.state_directory
            .path()
            .map_or_else(|| Path::new("/var/lib/penstock").join(&self.name), Path::to_path_buf)
    }

    /// The outer address of `tunnel` on this side: the one that is written, or the first address of the port that
    /// leads to the peer by the ports' networks and the routes of the file; `None` where nothing leads there.
    pub fn local_of(&self, tunnel: &Tunnel) -> Option<Ipv4Addr> {
        if let Some(local) = tunnel.local {
            return Some(local.0);
        }
        let (_, port) = self.port_towards(tunnel.towards()?)?;
        port.addresses.first().map(scalar::InterfaceAddress::address)
    }

    /// The port that leads to `destination` by the ports' networks and the routes of the file.
    pub fn port_towards(&self, destination: Ipv4Addr) -> Option<(&str, &Port)> {
        if let Some(found) = self.port_on_link(destination) {
            return Some(found);
        }
        let routes = self.routes.iter().filter(|route| route.to.0.contains(&destination));
        self.port_on_link(routes.max_by_key(|route| route.to.0.prefix_len())?.via.0)
    }

    /// The port whose network holds `address`.
    pub fn port_on_link(&self, address: Ipv4Addr) -> Option<(&str, &Port)> {
        let holds = |port: &Port| port.addresses.iter().any(|own| own.network().contains(&address));
        self.ports.iter().find(|(_, port)| holds(port)).map(|(name, port)| (name.as_str(), port))
    }

    /// The port that has `address` itself.
    pub fn port_with_address(&self, address: Ipv4Addr) -> Option<(&str, &Port)> {
        let has = |port: &Port| port.addresses.iter().any(|own| own.address() == address);
        self.ports.iter().find(|(_, port)| has(port)).map(|(name, port)| (name.as_str(), port))
    }

    /// The ports that are public, in the order of the ports.
    pub fn public_ports(&self) -> Vec<bool> {
        let locals: HashSet<Ipv4Addr> =
            self.tunnels.values().filter_map(|tunnel| self.local_of(tunnel)).collect();
        let carries = |port: &Port| port.addresses.iter().any(|own| locals.contains(&own.address()));
        self.ports.values().map(|port| port.public.unwrap_or(self.ports.len() > 1 && carries(port))).collect()
    }
}

/// What stands in `file`, which may be no ordinary file, or grow meanwhile.
fn read(file: &Path) -> Result<Zeroizing<Vec<u8>>, ConfigError> {
    let unreadable = |error: std::io::Error| {
        let message = match error.kind() {
            std::io::ErrorKind::NotFound => "no such file: write one or name another with --config".into(),
            _ => format!("cannot be read: {error}"),
        };
        ConfigError::unreadable(file, message)
    };
    let mut text = Zeroizing::new(Vec::new());
    let opened = std::fs::File::open(file).map_err(unreadable)?;
    opened.take(bounds::MAX_LEN + 1).read_to_end(&mut text).map_err(unreadable)?;
    if text.len() as u64 > bounds::MAX_LEN {
        let message = format!("is larger than {} MiB: not a configuration", bounds::MAX_LEN >> 20);
        return Err(ConfigError::unreadable(file, message));
    }
    Ok(text)
}
