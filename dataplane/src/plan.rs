//! Who receives what: from what the devices offer follows how many queues each gets, and from how they then steer ESP
//! (`steering`) whether workers hand over to one another (`path::spread`). Made once, at the start, and printed. No RFC rules
//! this file.

use crate::dpdk::Rules;
use crate::path::spread::{Role, Spread};
use crate::port::Frame;
use crate::steering::{self, Offer, Steering};

/// What was asked for: `--spread`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum SpreadOption {
    /// In software where the devices cannot.
    Auto,
    /// In software, all of it: one worker receives.
    On,
    /// Never in software.
    Off,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spreading {
    /// Each worker works on what it receives.
    None,
    /// Each worker receives; what is ESP, it may hand over.
    Inbound,
    /// Worker 0 receives and sends everything, and may hand all of it over.
    All,
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    option: SpreadOption,
    workers: u16,
    ports: Vec<Offer>,
    /// Of each port, once it was asked.
    steering: Vec<Option<Steering>>,
}

impl Plan {
    /// The plan for `workers` workers (at least 1) on these devices. Where none is known to be public, any may be.
    ///
    /// # Errors
    /// A sentence that says which device has too few queues for workers that may not hand over, and what to do.
    pub fn new(option: SpreadOption, workers: u16, mut ports: Vec<Offer>) -> Result<Plan, String> {
        let short = ports.iter().find(|port| port.max_queues < workers);
        if let (SpreadOption::Off, Some(Offer { port, driver, max_queues, .. })) = (option, short) {
            return Err(format!(
                "port {port}: {driver} has {max_queues} queue pairs for {workers} workers: give `dataplane.cores` fewer cores, or \
                 let workers share what one receives (`dataplane.spread: auto`)"
            ));
        }
        if !ports.iter().any(|port| port.public) {
            ports.iter_mut().for_each(|port| port.public = true);
        }
        let steering = vec![None; ports.len()];
        Ok(Plan { option, workers, ports, steering })
    }

    /// Has the device of a port that is started steer ESP, if the plan has a use for it; see [`steering::find`].
    pub fn steer(&mut self, port: usize, ask: impl FnMut(Rules) -> Result<(), String>) {
        let queues = self.queues();
        if queues > 1 && self.ports[port].public {
            self.steering[port] = Some(steering::find(&self.ports[port], queues, ask));
        }
    }

    fn spreading(&self) -> Spreading {
        let short = self.ports.iter().any(|port| port.max_queues < self.workers);
        let blind =
            |steering: &Option<Steering>| steering.as_ref().is_some_and(|steering| !steering.is_whole());
        match self.option {
            _ if self.workers == 1 => Spreading::None,
            SpreadOption::Off => Spreading::None,
            SpreadOption::On => Spreading::All,
            SpreadOption::Auto if short => Spreading::All,
            SpreadOption::Auto if self.steering.iter().any(blind) => Spreading::Inbound,
            SpreadOption::Auto => Spreading::None,
        }
    }

    /// Queue pairs that each device gets; the workers from that number on have none.
    pub fn queues(&self) -> u16 {
        if self.spreading() == Spreading::All { 1 } else { self.workers }
    }

    /// The parts of the workers in it, once all ports were asked.
    pub fn parts<F: Frame>(&self) -> Vec<Spread<F>> {
        let spreading = self.spreading();
        let role = |worker| Role {
            receiver: worker == 0 || spreading == Spreading::Inbound,
            alone: worker == 0 && spreading == Spreading::All,
        };
        match spreading {
            Spreading::None => (0..self.workers).map(|_| Spread::off()).collect(),
            _ => Spread::among(&(0..self.workers).map(role).collect::<Vec<_>>()),
        }
    }

    /// For people, a line each, once all ports were asked; none for a single worker.
    pub fn lines(&self) -> Vec<String> {
        if self.workers == 1 {
            return Vec::new();
        }
        let last = self.workers - 1;
        let ports = self.ports.iter().zip(&self.steering);
        let mut lines: Vec<String> =
            ports.map(|(port, steering)| self.line(port, steering.as_ref())).collect();
        match self.spreading() {
            Spreading::None => {}
            Spreading::Inbound => lines.push(format!(
                "software spreading over workers 0-{last}: a worker that receives more ESP than it can open hands bursts to the others \
                 and delivers them in order; each seals what it receives"
            )),
            Spreading::All => lines.push(format!(
                "software spreading over workers 0-{last}: worker 0 receives and sends, all seal and open, in order"
            )),
        }
        lines
    }

    fn line(&self, Offer { port, driver, public, .. }: &Offer, steering: Option<&Steering>) -> String {
        let (side, queues) = (if *public { "public" } else { "private" }, self.queues());
        let gets = match steering {
            Some(steering) => steering.words(queues),
            None if queues == 1 => "queue 0 gets everything".into(),
            None => format!("queues 0-{} get packets by their addresses", queues - 1),
        };
        format!("{side} port {port} ({driver}): {gets}")
    }
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;

    use super::*;
    use crate::dpdk::Carrier;
    use crate::port::memory::MemoryFrame;

    fn offer(port: &str, max_queues: u16, rss_by_spi: bool) -> Offer {
        let public = port == "wan";
        Offer { port: port.into(), driver: "net_x".into(), max_queues, rss_by_spi, public }
    }

    fn receivers(plan: &Plan) -> Vec<bool> {
        plan.parts::<MemoryFrame>().iter().map(Spread::takes_from_kernel).collect()
    }

    /// A plan on devices without flow rules.
    fn plan(option: SpreadOption, workers: u16, offers: &[Offer]) -> Plan {
        let mut plan = Plan::new(option, workers, offers.to_vec()).unwrap();
        (0..offers.len()).for_each(|port| plan.steer(port, |_| Err("no rules".into())));
        plan
    }

    #[test]
    fn software_spreads_where_the_devices_cannot() {
        let (few, many, smart) = (offer("lan", 1, false), offer("wan", 16, false), offer("wan", 16, true));
        let one = plan(SpreadOption::Auto, 1, from_ref(&few));
        assert_eq!((one.queues(), one.lines().len(), receivers(&one)), (1, 0, vec![true]));
        let short = plan(SpreadOption::Auto, 3, &[few.clone(), many.clone()]);
        assert_eq!((short.queues(), receivers(&short)), (1, vec![true, false, false]));
        assert_eq!(
            short.lines(),
            [
                "private port lan (net_x): queue 0 gets everything",
                "public port wan (net_x): queue 0 gets everything",
                "software spreading over workers 0-2: worker 0 receives and sends, all seal and open, in order"
            ]
        );
        let blind = plan(SpreadOption::Auto, 2, &[many.clone(), smart.clone()]);
        assert_eq!((blind.queues(), receivers(&blind)), (2, vec![true, true]));
        assert!(blind.lines()[0].contains("no RSS by SPI; ") && blind.lines().len() == 3);
        assert!(blind.lines()[2].starts_with("software spreading over workers 0-1: a worker that receives"));
        assert_eq!(plan(SpreadOption::On, 2, &[smart]).queues(), 1);
        let off = plan(SpreadOption::Off, 2, &[many]);
        assert_eq!((off.queues(), off.lines().len()), (2, 1));
        let error = Plan::new(SpreadOption::Off, 2, vec![few]).unwrap_err();
        assert!(
            error.contains("port lan: net_x has 1 queue pairs for 2 workers")
                && error.contains("dataplane.spread")
        );
    }

    #[test]
    fn what_the_private_side_cannot_does_not_matter() {
        let (lan, smart) = (offer("lan", 16, false), offer("wan", 16, true));
        let able = plan(SpreadOption::Auto, 2, &[lan.clone(), smart]);
        assert_eq!(
            able.lines(),
            [
                "private port lan (net_x): queues 0-1 get packets by their addresses",
                "public port wan (net_x): queues 0-1 get ESP by a hash of its SPI (RSS)"
            ]
        );
        // As long as one is known to be public.
        assert_eq!(plan(SpreadOption::Auto, 2, &[lan]).lines().len(), 2);
    }

    #[test]
    fn flow_rules_take_the_place_of_software() {
        let (lan, wan) = (offer("lan", 16, false), offer("wan", 16, false));
        let mut plan = Plan::new(SpreadOption::Auto, 4, vec![lan, wan]).unwrap();
        plan.steer(0, |_| panic!("the private port is not asked"));
        plan.steer(1, |_| Ok(()));
        assert_eq!((plan.queues(), plan.lines().len()), (4, 2));
        assert!(
            plan.lines()[1].starts_with("public port wan (net_x): queue 0 gets SPIs that end in binary 00")
        );
        // In UDP no rule was made: software stays.
        plan.steer(1, |rules| if rules.carrier == Carrier::Ip { Ok(()) } else { Err("no".into()) });
        assert_eq!((plan.lines().len(), receivers(&plan)), (3, vec![true; 4]));
    }
}
