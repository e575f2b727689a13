//! The carriers of twins: what the data plane says of its ports' links and what tunnels have for SAs enters, which twins have a
//! carrier leaves. So the kernel's routes, routing daemons and `ip monitor` see an outage as they do on any link. No RFC rules
//! this file.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use penstock_tables::StateView;

use crate::config::{StartWhen, Tunnel};
use crate::gateway::Gateway;
use crate::netlink::Kernel;
use crate::twins::{TwinError, Twins};

/// How often links and SAs are looked at.
const LOOK: Duration = Duration::from_millis(50);
/// The kernel tells of a carrier that it took up to a second later; meanwhile it is not asked again.
const PATIENCE: Duration = Duration::from_secs(1);

/// Whether a tunnel's interface has a carrier: as long as packets can be sealed. One that waits for traffic keeps it, for
/// without a carrier nothing would be sent into it and nothing would ever set it up.
fn of_tunnel(has_sa: bool, waits_for_traffic: bool, held: bool) -> bool {
    !held && (has_sa || waits_for_traffic)
}

/// Whether a port's twin has a carrier. What cannot be known is taken for a link that is up: a port that is not open yet, and
/// a net_tap whose kernel end was moved to another network namespace.
fn of_port(link_up: Option<bool>, driver: &str, device: &str, kernel: &Kernel) -> bool {
    let end = device.split(',').find_map(|option| option.strip_prefix("iface="));
    let moved = driver == "net_tap" && end.is_none_or(|end| kernel.ifindex(end).is_none());
    link_up.is_none_or(|up| up || moved)
}

fn waits_for_traffic(tunnel: &Tunnel) -> bool {
    tunnel.ike.as_ref().is_some_and(|ike| ike.start == Some(StartWhen::Traffic))
}

impl Gateway {
    /// The twins whose carrier is another than it should be, by index: whether it should be there. None without the data
    /// plane, as the kernel takes the carrier then.
    fn wrong_carriers(&self, kernel: &Kernel) -> Vec<(u32, bool)> {
        let Some(state) = self.state.as_ref().filter(|state| StateView::data_plane_lives(state)) else {
            return Vec::new();
        };
        let ports = self.twins_of_ports().filter_map(|(interface, port)| {
            let report = state.ports().get(usize::from(port)).and_then(|port| port.get());
            let device = &self.config().ports.values().nth(usize::from(port))?.device;
            let driver = report.as_ref().map_or("", |report| report.driver.as_str());
            let up = report.as_ref().map(|report| report.link_up);
            Some((interface, of_port(up, driver, device, kernel)))
        });
        let tunnels = self.twins_of_tunnels().filter_map(|(interface, name)| {
            // Before its slot is found or made nothing is known of it.
            let live = self.tunnels.get(name)?;
            let tunnel = self.config().tunnels.get(name)?;
            let held = self.is_held(name);
            Some((interface, of_tunnel(live.outbound().is_some(), waits_for_traffic(tunnel), held)))
        });
        let other = |(interface, wanted): &(u32, bool)| {
            kernel.links().get(interface).is_some_and(|link| link.up && link.carrier != *wanted)
        };
        ports.chain(tunnels).filter(other).collect()
    }
}

/// Makes the carriers what they should be.
#[derive(Debug, Default)]
pub struct Carriers {
    looked: Option<Instant>,
    /// What was asked for, by interface, and when.
    asked: HashMap<u32, (bool, Instant)>,
}

impl Carriers {
    /// Looks whether carriers are as they should be, and sets those that are not.
    ///
    /// # Errors
    /// The kernel refuses.
    pub async fn follow(
        &mut self,
        gateway: &Gateway,
        kernel: &Kernel,
        twins: &Twins,
    ) -> Result<(), TwinError> {
        if self.looked.is_some_and(|looked| looked.elapsed() < LOOK) {
            return Ok(());
        }
        self.looked = Some(Instant::now());
        let wrong = gateway.wrong_carriers(kernel);
        self.asked.retain(|interface, (on, when)| {
            when.elapsed() < PATIENCE && wrong.iter().any(|one| one == &(*interface, *on))
        });
        for (interface, on) in wrong {
            if let std::collections::hash_map::Entry::Vacant(place) = self.asked.entry(interface) {
                twins.set_carrier(interface, on).await?;
                place.insert((on, Instant::now()));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tunnel_has_a_carrier_with_an_sa_or_while_it_waits_for_traffic() {
        let carriers = [(false, false), (false, true), (true, false), (true, true)]
            .map(|(has_sa, on_traffic)| [false, true].map(|held| of_tunnel(has_sa, on_traffic, held)));
        assert_eq!(carriers, [[false, false], [true, false], [true, false], [true, false]]);
    }

    #[test]
    fn a_port_has_its_links_carrier_where_that_can_be_known() {
        let kernel = Kernel::default();
        let of = |up, driver, device| of_port(up, driver, device, &kernel);
        assert!(of(None, "", "0000:01:00.0") && of(Some(true), "net_ice", "0000:01:00.0"));
        assert!(!of(Some(false), "net_ice", "0000:01:00.0"));
        assert!(of(Some(false), "net_tap", "net_tap0,iface=moved"));
    }
}
