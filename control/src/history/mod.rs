//! What happened to the gateway and its tunnels: events enter, the last ones leave, also those of earlier runs of control.
//! The last of each tunnel are kept apart, so that a noisy one pushes nobody else's out.

mod file;
mod notice;

use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::sync::Arc;

use crate::api::types::LogEntry;
use file::File;
pub(crate) use notice::{Notices, entry_of};

/// Events of the whole gateway that are kept in memory.
const MOST: usize = 2000;
/// Of each tunnel.
const MOST_EACH: usize = 64;

/// The events.
#[derive(Debug)]
pub struct History {
    all: VecDeque<Arc<LogEntry>>,
    of: HashMap<String, VecDeque<Arc<LogEntry>>>,
    file: File,
}

impl History {
    /// Those that `directory` keeps.
    pub fn open(directory: &Path) -> History {
        let (file, kept) = File::open(directory);
        let mut history = History { all: VecDeque::new(), of: HashMap::new(), file };
        kept.into_iter().for_each(|entry| history.keep(entry));
        history
    }

    /// Something happened.
    pub fn add(&mut self, entry: LogEntry) {
        self.file.append(&entry);
        self.keep(entry);
    }

    fn keep(&mut self, entry: LogEntry) {
        let entry = Arc::new(entry);
        if let Some(tunnel) = &entry.tunnel {
            push(self.of.entry(tunnel.clone()).or_default(), MOST_EACH, &entry);
        }
        push(&mut self.all, MOST, &entry);
    }

    /// Of everything, oldest first.
    pub fn all(&self) -> impl Iterator<Item = &LogEntry> {
        self.all.iter().map(|entry| &**entry)
    }

    /// Of one tunnel and of the gateway itself, oldest first.
    pub fn of(&self, tunnel: &str) -> Vec<&LogEntry> {
        let own = self.of.get(tunnel).into_iter().flatten();
        let mut found: Vec<&LogEntry> =
            own.chain(self.all.iter().filter(|entry| entry.tunnel.is_none())).map(|entry| &**entry).collect();
        // Stable: what is of one second stays in its order.
        found.sort_by_key(|entry| entry.unix_seconds);
        found
    }

    /// Forgets tunnels that are not configured any more.
    pub fn retain(&mut self, is_known: impl Fn(&str) -> bool) {
        self.of.retain(|tunnel, _| is_known(tunnel));
    }

    /// Why events are not on disk.
    pub fn problem(&self) -> Option<String> {
        self.file.problem()
    }
}

fn push(list: &mut VecDeque<Arc<LogEntry>>, most: usize, entry: &Arc<LogEntry>) {
    if list.len() >= most {
        list.pop_front();
    }
    list.push_back(entry.clone());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(tunnel: Option<&str>, second: u64) -> LogEntry {
        LogEntry {
            unix_seconds: second,
            event: "failed".into(),
            tunnel: tunnel.map(Into::into),
            child: None,
            reason: None,
            text: format!("failed: number {second}"),
            times: 1,
        }
    }

    fn seconds<'a>(entries: impl IntoIterator<Item = &'a LogEntry>) -> Vec<u64> {
        entries.into_iter().map(|entry| entry.unix_seconds).collect()
    }

    #[test]
    fn a_noisy_tunnel_pushes_no_others_events_out() {
        let folder = tempfile::tempdir().expect("temporary directory");
        let mut history = History::open(folder.path());
        history.add(entry(Some("quiet"), 1));
        (10..10 + MOST as u64).for_each(|second| history.add(entry(Some("noisy"), second)));
        history.add(entry(None, 5));
        assert_eq!(seconds(history.of("quiet")), [1, 5]);
        assert_eq!(history.of("noisy").len(), MOST_EACH + 1);
        assert_eq!(history.all().count(), MOST);
        history.retain(|tunnel| tunnel == "noisy");
        assert_eq!(seconds(history.of("quiet")), [5]);
    }

    #[test]
    fn it_survives_its_process() {
        let folder = tempfile::tempdir().expect("temporary directory");
        let mut history = History::open(folder.path());
        (1..=3).for_each(|second| history.add(entry(Some("a"), second)));
        drop(history);
        let mut history = History::open(folder.path());
        history.add(entry(None, 4));
        drop(history);
        let history = History::open(folder.path());
        assert_eq!(seconds(history.all()), [1, 2, 3, 4]);
        assert_eq!(history.problem(), None);
    }
}
