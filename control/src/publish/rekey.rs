//! Steps the generation of lab keys and watches the numbers of outbound SAs: an operator's wish, a peer's step or a grant
//! that runs out enters, new SAs or a higher limit leave (RFC 4303 section 3.3.3).
//!
//! **Rekeying lab keys.** A gateway whose generation is g seals with g and opens g-1, g and g+1. To step is to retire
//! inbound g-1, install inbound g+2, install outbound g+1 and switch to it, in this order: the other gateway opens g+1
//! already. A gateway that opens a packet of g+1 steps as well. So either side may begin, and both may begin at once.
//! Stepping again before the other side has followed would leave it behind; that is refused ([`StepError::Behind`]).

use std::time::{Duration, Instant};

use penstock_tables::{StateView, TablesWriter};

use super::journal::{JournalError, Record};
use super::live::{Live, missing, trim};
use super::plan::Keys;
use super::tunnels::{Tunnels, complete};

/// A gateway that has sent on its generation for so long is taken to be followed.
const FOLLOWED: Duration = Duration::from_millis(500);
/// Tunnels that one round of [`Tunnels::watch`] looks at, so that 100,000 of them do not hold the process up.
const WATCHED: usize = 8192;

/// Why a tunnel's keys were not stepped.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// There is no such tunnel.
    #[error("there is no tunnel {0}: `penstock show tunnels` lists them")]
    Unknown(String),
    /// Its keys are written down.
    #[error("tunnel {0} has fixed keys, which cannot be rekeyed: give it a secret_file instead")]
    Fixed(String),
    /// IKEv2 negotiates its keys.
    #[error("tunnel {0} has no lab keys: IKEv2 negotiates its keys")]
    Negotiated(String),
    /// The peer may not have followed the last step.
    #[error(
        "tunnel {name}: the peer has been seen on generation {seen} only, and this gateway is on {own}: another step \
         could leave it behind; send traffic, step the peer, or insist with --force"
    )]
    Behind {
        /// The tunnel.
        name: String,
        /// Highest generation that the peer used.
        seen: u32,
        /// This gateway's generation.
        own: u32,
    },
    /// A generation is never used again.
    #[error("tunnel {name} is on generation {own}: it cannot go back to {asked}")]
    Back {
        /// The tunnel.
        name: String,
        /// This gateway's generation.
        own: u32,
        /// The one that was asked for.
        asked: u32,
    },
    /// The journal could not be written.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The new SAs could not be installed; the old ones stay in use.
    #[error("tunnel {name}: {error}")]
    Table {
        /// The tunnel.
        name: String,
        /// What is full.
        error: String,
    },
}

impl Tunnels {
    /// Steps the keys of tunnel `name` to generation `to`, or to the next. Stepping to where it is does nothing.
    ///
    /// # Errors
    /// [`StepError`]; the SA in use stays in use then.
    pub fn step(
        &mut self,
        tables: &mut TablesWriter,
        state: &StateView,
        name: &str,
        to: Option<u32>,
        force: bool,
    ) -> Result<u32, StepError> {
        let live = self.live.get(name).ok_or_else(|| StepError::Unknown(name.into()))?;
        match live.plan.keys {
            Keys::Derived { .. } => (),
            Keys::Fixed { .. } => return Err(StepError::Fixed(name.into())),
            Keys::Ike => return Err(StepError::Negotiated(name.into())),
        }
        let own = live.generation;
        let target = to.unwrap_or(own.saturating_add(1));
        if target < own {
            return Err(StepError::Back { name: name.into(), own, asked: target });
        }
        if target == own {
            return Ok(own);
        }
        if to.is_none() && !live.is_followed(state) && !force {
            return Err(StepError::Behind { name: name.into(), seen: live.peer_generation, own });
        }
        let failed = self.set_generations(tables, state, vec![(name.into(), target)])?;
        failed.into_iter().next().map_or(Ok(()), Err)?;
        Ok(self.live.get(name).map_or(target, |live| live.generation))
    }

    /// Steps every tunnel with derived keys to its next generation, with one write to disk; `force` also those whose peer may
    /// not have followed the last step.
    ///
    /// # Errors
    /// [`JournalError`]; the SAs in use stay in use then.
    pub fn step_all(
        &mut self,
        tables: &mut TablesWriter,
        state: &StateView,
        force: bool,
    ) -> Result<Stepped, JournalError> {
        let mut stepped = Stepped::default();
        let mut steps = Vec::new();
        for (name, live) in &self.live {
            match live.plan.keys {
                Keys::Derived { .. } if force || live.is_followed(state) => {
                    steps.push((name.clone(), live.generation.saturating_add(1)));
                }
                Keys::Derived { .. } => stepped.behind += 1,
                Keys::Fixed { .. } => stepped.fixed += 1,
                Keys::Ike => stepped.negotiated += 1,
            }
        }
        stepped.stepped = steps.len();
        let failed = self.set_generations(tables, state, steps)?;
        stepped.stepped -= failed.len();
        stepped.problems = failed.iter().map(ToString::to_string).collect();
        Ok(stepped)
    }

    /// Makes each tunnel's generation the one beside its name. Returns those that could not be: they stay as they were.
    fn set_generations(
        &mut self,
        tables: &mut TablesWriter,
        state: &StateView,
        steps: Vec<(String, u32)>,
    ) -> Result<Vec<StepError>, JournalError> {
        let mut stepping = Vec::new();
        for (name, generation) in steps {
            let Some((name, mut live)) = self.live.remove_entry(&name) else { continue };
            let granted = live.own.outbound.as_ref().map_or(0, |outbound| outbound.granted);
            let before = Record { generation: std::mem::replace(&mut live.generation, generation), granted };
            stepping.push((name, live, before));
        }
        let mut lives: Vec<&mut Live> = stepping.iter_mut().map(|(_, live, _)| live).collect();
        let mut result = complete(&mut lives, &mut self.journal, tables, state);
        let (mut failed, mut back) = (Vec::new(), Vec::new());
        for (name, mut live, before) in stepping {
            let seals = live.own.outbound.as_ref().is_some_and(|sa| sa.generation == live.generation);
            match (live.problem.take(), seals && result.is_ok()) {
                (None, true) => live.stepped = Instant::now(),
                (problem, _) => {
                    // What seals now goes on sealing. A step that had begun is not taken back: its numbers are in use.
                    live.generation =
                        live.own.outbound.as_ref().map_or(before.generation, |sa| sa.generation);
                    if live.generation == before.generation {
                        back.extend(live.chain().map(|chain| (chain, before)));
                    }
                    trim(&mut live, tables, state);
                    let error = problem.unwrap_or_else(|| "its keys could not be stepped".into());
                    // Filling up tries again, not so often.
                    let lacks = missing(&live).next().is_some();
                    live.problem = lacks.then(|| error.clone());
                    failed.push(StepError::Table { name: name.clone(), error });
                }
            }
            self.live.insert(name, live);
        }
        if result.is_ok() {
            result = self.journal.put(&back);
        }
        result.map(|()| failed)
    }

    /// Follows peers that have stepped, extends grants that run out, steps what nears its last number. Looks at a part of
    /// the tunnels, the next one at the next call. Returns what went wrong.
    pub fn watch(&mut self, tables: &mut TablesWriter, state: &StateView) -> Vec<String> {
        let mut problems = Vec::new();
        if let Err(error) = self.journal.watch() {
            problems.push(error.to_string());
        }
        let after = (std::ops::Bound::Excluded(self.cursor.clone()), std::ops::Bound::Unbounded);
        let part: Vec<&String> = self.live.range(after).map(|(name, _)| name).take(WATCHED).collect();
        let full = part.len() == WATCHED;
        let due: Vec<(String, Due)> =
            part.iter().filter_map(|name| Some(((*name).clone(), due(&self.live[*name], state)?))).collect();
        self.cursor = part.last().filter(|_| full).map(|name| (*name).clone()).unwrap_or_default();
        let (mut grants, mut steps) = (Vec::new(), Vec::new());
        for (name, due) in due {
            let Some(live) = self.live.get_mut(&name) else { continue };
            match due {
                Due::PeerAt(seen) => {
                    live.peer_generation = seen;
                    if seen > live.generation {
                        steps.push((name, seen));
                    }
                }
                Due::Step if live.is_followed(state) => steps.push((name, live.generation.saturating_add(1))),
                Due::Step => {
                    let (seen, own) = (live.peer_generation, live.generation);
                    problems.push(StepError::Behind { name, seen, own }.to_string());
                }
                Due::Grant(granted) => grants.push((name, granted)),
                Due::Inbound => steps.push((name, live.generation)),
            }
        }
        match self.set_generations(tables, state, steps) {
            Ok(failed) => problems.extend(failed.iter().map(ToString::to_string)),
            Err(error) => problems.push(error.to_string()),
        }
        if let Err(error) = self.raise(tables, &grants) {
            problems.push(error.to_string());
        }
        problems
    }

    /// Records grants, all with one write, and only then tells the data plane.
    fn raise(&mut self, tables: &mut TablesWriter, grants: &[(String, u64)]) -> Result<(), JournalError> {
        let record = |(name, granted): &(String, u64)| {
            let live = &self.live[name];
            Some((live.chain()?, Record { generation: live.generation, granted: *granted }))
        };
        self.journal.put(&grants.iter().filter_map(record).collect::<Vec<_>>())?;
        for (name, granted) in grants {
            if let Some(outbound) = self.live.get_mut(name).and_then(|live| live.own.outbound.as_mut()) {
                tables.raise_hard_limit(outbound.slot, *granted);
                outbound.granted = *granted;
            }
        }
        Ok(())
    }
}

/// What a tunnel needs now.
enum Due {
    PeerAt(u32),
    Step,
    Grant(u64),
    /// The SPI of its next generation was another tunnel's, and may be free by now.
    Inbound,
}

/// What [`Tunnels::step_all`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Stepped {
    /// Tunnels that seal with their next generation now.
    pub stepped: usize,
    /// Tunnels that were left, since their peer may not have followed the last step.
    pub behind: usize,
    /// Tunnels with fixed keys.
    pub fixed: usize,
    /// Tunnels whose keys IKEv2 negotiates.
    pub negotiated: usize,
    /// What went wrong with the others.
    pub problems: Vec<String>,
}

impl Live {
    /// Whether the peer has been seen on the generation in use, or must have seen this side on it.
    fn is_followed(&self, state: &StateView) -> bool {
        let sent = self.own.outbound.as_ref().is_some_and(|sa| sa.sequence(state) > sa.first);
        self.peer_generation >= self.generation || (sent && self.stepped.elapsed() >= FOLLOWED)
    }
}

fn due(live: &Live, state: &StateView) -> Option<Due> {
    if live.is_negotiated() {
        return None;
    }
    let newer = live.inbound.range(live.peer_generation.saturating_add(1)..).rev();
    if let Some((seen, _)) = newer.into_iter().find(|(_, sa)| sa.sequence(state) > 0) {
        return Some(Due::PeerAt(*seen));
    }
    let outbound = live.own.outbound.as_ref().filter(|_| live.has_lab_keys())?;
    if live.problem.is_none() && missing(live).next().is_some() {
        return Some(Due::Inbound);
    }
    let used = outbound.sequence(state);
    let half = 1 << (live.grant_log2() - 1);
    if used.saturating_add(half) < outbound.granted {
        return None;
    }
    let next = live.grant_after(outbound.granted);
    let ends = next < outbound.granted.saturating_add(half);
    if ends && matches!(live.plan.keys, Keys::Derived { .. }) {
        return Some(Due::Step);
    }
    (next > outbound.granted).then_some(Due::Grant(next))
}
