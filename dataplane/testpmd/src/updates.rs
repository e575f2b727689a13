//! Changes of the tables while packets run: tunnels with SAs and routes come and go as fast as control can, on an lcore of its
//! own. How many changes there were comes out; what they cost the workers shows in their gaps.

use std::time::{Duration, Instant};

use penstock_tables::Hop;

use super::Failure;
use super::lcores::Crew;
use super::options::BenchOptions;
use super::sites::{Site, network};

/// Until the crew stops: adds `options.updates` tunnels behind the `sas` that carry packets, and takes them out again.
/// Returns how many SAs were added and taken out.
///
/// # Errors
/// Where a table is full.
pub fn churn(site: &mut Site, options: &BenchOptions, sas: u32, crew: &Crew) -> Result<u64, Failure> {
    let standing = site.routes();
    let mut changes = 0;
    while !crew.stopped() {
        let mut routes = standing.clone();
        let mut added = Vec::new();
        for number in sas..sas + options.updates {
            let pair = site.add_outbound(number, options)?;
            routes.insert(network(number), Hop::Tunnel(pair.0));
            added.push(pair);
            if crew.stopped() {
                break;
            }
        }
        site.set_routes(&routes)?;
        site.set_routes(&standing)?;
        changes += 2 * added.len() as u64;
        added.into_iter().for_each(|pair| site.remove_outbound(pair));
        // Slots come back once every worker has polled; workers that ended never will.
        while site.reclaim() > 0 && !crew.stopped() {
            std::thread::yield_now();
        }
    }
    Ok(changes)
}

/// Without changes: tells rates to stderr every `stats_period` until the crew stops.
pub fn tell(site: &Site, options: &BenchOptions, crew: &Crew) -> Option<u64> {
    if options.stats_period <= 0.0 {
        return None;
    }
    let period = Duration::from_secs_f64(options.stats_period);
    let (mut last, mut at) = (site.tally().received, Instant::now());
    while !crew.stopped() {
        std::thread::sleep(Duration::from_millis(10).min(period));
        if at.elapsed() >= period {
            let (received, seconds) = (site.tally().received, at.elapsed().as_secs_f64());
            // The generator's share of the time is in it, so this is less than what is reported at the end.
            eprintln!("{:.3} Mpps with the generator", received.saturating_sub(last) as f64 / seconds / 1e6);
            (last, at) = (received, Instant::now());
        }
    }
    None
}
