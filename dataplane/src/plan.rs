//! Who receives what: from what the devices offer follows how many queues each gets, and whether workers hand over to one
//! another (`path::spread`). Made once, at the start, and printed. No RFC rules this file.

use crate::path::spread::{Role, Spread};
use crate::port::Frame;

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

/// What a device offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Name of the port.
    pub port: String,
    /// Name of the driver.
    pub driver: String,
    /// Queue pairs at most.
    pub max_queues: u16,
    /// Whether its RSS can hash the SPI of ESP.
    pub rss_by_spi: bool,
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
    spreading: Spreading,
    workers: u16,
    ports: Vec<Offer>,
}

impl Plan {
    /// The plan for `workers` workers (at least 1) on these devices.
    ///
    /// # Errors
    /// A sentence that says which device has too few queues for workers that may not hand over, and what to do.
    pub fn new(option: SpreadOption, workers: u16, ports: Vec<Offer>) -> Result<Plan, String> {
        let short = ports.iter().find(|port| port.max_queues < workers);
        let spreading = match (option, short) {
            _ if workers == 1 => Spreading::None,
            (SpreadOption::Off, Some(Offer { port, driver, max_queues, .. })) => {
                return Err(format!(
                    "port {port}: {driver} has {max_queues} queue pairs for {workers} workers: give `dataplane.cores` fewer cores, or \
                     let workers share what one receives (`dataplane.spread: auto`)"
                ));
            }
            (SpreadOption::Off, None) => Spreading::None,
            (SpreadOption::On, _) | (SpreadOption::Auto, Some(_)) => Spreading::All,
            (SpreadOption::Auto, None) if ports.iter().all(|port| port.rss_by_spi) => Spreading::None,
            (SpreadOption::Auto, None) => Spreading::Inbound,
        };
        Ok(Plan { spreading, workers, ports })
    }

    /// Queue pairs that each device gets; the workers from that number on have none.
    pub fn queues(&self) -> u16 {
        if self.spreading == Spreading::All { 1 } else { self.workers }
    }

    /// The parts of the workers in it.
    pub fn parts<F: Frame>(&self) -> Vec<Spread<F>> {
        let role = |worker| Role {
            receiver: worker == 0 || self.spreading == Spreading::Inbound,
            alone: worker == 0 && self.spreading == Spreading::All,
        };
        match self.spreading {
            Spreading::None => (0..self.workers).map(|_| Spread::off()).collect(),
            _ => Spread::among(&(0..self.workers).map(role).collect::<Vec<_>>()),
        }
    }

    /// For people, a line each; none for a single worker.
    pub fn lines(&self) -> Vec<String> {
        if self.workers == 1 {
            return Vec::new();
        }
        let last = self.workers - 1;
        let mut lines: Vec<String> = self.ports.iter().map(|port| self.line(port)).collect();
        match self.spreading {
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

    fn line(&self, Offer { port, driver, rss_by_spi, .. }: &Offer) -> String {
        let last = self.queues() - 1;
        match (self.spreading, rss_by_spi) {
            (Spreading::All, _) => format!("port {port} ({driver}): queue 0 gets everything"),
            (_, true) => {
                format!("port {port} ({driver}): queues 0-{last} get the SPIs that RSS hashes to them")
            }
            (_, false) => format!(
                "port {port} ({driver}): queues 0-{last}, no RSS by SPI: all SPIs between two addresses get the same queue"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;

    use super::*;
    use crate::port::memory::MemoryFrame;

    fn offer(port: &str, max_queues: u16, rss_by_spi: bool) -> Offer {
        Offer { port: port.into(), driver: "net_x".into(), max_queues, rss_by_spi }
    }

    fn receivers(plan: &Plan) -> Vec<bool> {
        plan.parts::<MemoryFrame>().iter().map(Spread::takes_from_kernel).collect()
    }

    #[test]
    fn software_spreads_where_the_devices_cannot() {
        let plan = |option, workers, offers: &[Offer]| Plan::new(option, workers, offers.to_vec());
        let (few, many, smart) = (offer("lan", 1, false), offer("wan", 16, false), offer("wan", 16, true));
        let one = plan(SpreadOption::Auto, 1, from_ref(&few)).unwrap();
        assert_eq!((one.queues(), one.lines().len(), receivers(&one)), (1, 0, vec![true]));
        let short = plan(SpreadOption::Auto, 3, &[few.clone(), many.clone()]).unwrap();
        assert_eq!((short.queues(), receivers(&short)), (1, vec![true, false, false]));
        assert_eq!(
            short.lines().last().unwrap(),
            "software spreading over workers 0-2: worker 0 receives and sends, all seal and open, in order"
        );
        let blind = plan(SpreadOption::Auto, 2, &[many.clone(), smart.clone()]).unwrap();
        assert_eq!((blind.queues(), receivers(&blind)), (2, vec![true, true]));
        assert!(blind.lines()[0].contains("no RSS by SPI") && blind.lines().len() == 3);
        let able = plan(SpreadOption::Auto, 2, from_ref(&smart)).unwrap();
        assert_eq!(able.lines(), ["port wan (net_x): queues 0-1 get the SPIs that RSS hashes to them"]);
        assert_eq!(plan(SpreadOption::On, 2, &[smart]).unwrap().queues(), 1);
        assert_eq!(plan(SpreadOption::Off, 2, &[many]).unwrap().queues(), 2);
        let error = plan(SpreadOption::Off, 2, &[few]).unwrap_err();
        assert!(
            error.contains("port lan: net_x has 1 queue pairs for 2 workers")
                && error.contains("dataplane.spread")
        );
    }
}
