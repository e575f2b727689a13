//! Events on disk: each is one line of JSON, appended by a thread of its own, so that a slow disk holds nothing up. Two
//! files of bounded length: when one is full it takes the place of the older. A line that was torn by a crash is passed over
//! by who reads; a full disk costs the events, and nothing else.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::api::types::LogEntry;

/// Octets of one file.
const MOST: u64 = 4 << 20;
/// Lines that wait for the disk.
const WAITING: usize = 4096;
/// How long a line may be in the kernel's memory alone.
const SYNC: Duration = Duration::from_secs(1);

const NAME: &str = "events.log";
const OLD: &str = "events.log.1";

/// Where events are kept.
#[derive(Debug)]
pub struct File {
    lines: Option<SyncSender<Vec<u8>>>,
    problem: Arc<Mutex<Option<String>>>,
    thread: Option<JoinHandle<()>>,
}

impl File {
    /// The files in `directory`, and the events that they hold, oldest first.
    pub fn open(directory: &Path) -> (File, Vec<LogEntry>) {
        File::with(directory, MOST)
    }

    fn with(directory: &Path, most: u64) -> (File, Vec<LogEntry>) {
        let kept = [OLD, NAME].iter().flat_map(|name| read(&directory.join(name))).collect();
        let (lines, waiting) = sync_channel(WAITING);
        let problem = Arc::new(Mutex::new(None));
        let writer = Writer {
            path: directory.join(NAME),
            old: directory.join(OLD),
            most,
            open: None,
            problem: problem.clone(),
        };
        let thread = std::thread::Builder::new().name("events".into()).spawn(move || writer.run(&waiting));
        if let Err(error) = &thread {
            *problem.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
        }
        (File { lines: Some(lines), problem, thread: thread.ok() }, kept)
    }

    /// Has an event written, soon.
    pub fn append(&self, entry: &LogEntry) {
        if let (Some(lines), Ok(mut line)) = (&self.lines, serde_json::to_vec(entry)) {
            line.push(b'\n');
            // Where the disk takes nothing for so long, it is missing there.
            let _ = lines.try_send(line);
        }
    }

    /// Why events are not written.
    pub fn problem(&self) -> Option<String> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for File {
    fn drop(&mut self) {
        self.lines = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Whole lines that are events; others were torn, or are somebody else's.
fn read(path: &Path) -> Vec<LogEntry> {
    let octets = fs::read(path).unwrap_or_default();
    octets.split(|octet| *octet == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect()
}

struct Writer {
    path: PathBuf,
    old: PathBuf,
    most: u64,
    /// The file and its length.
    open: Option<(fs::File, u64)>,
    problem: Arc<Mutex<Option<String>>>,
}

impl Writer {
    fn run(mut self, lines: &Receiver<Vec<u8>>) {
        let mut unsynced = false;
        loop {
            let next = match unsynced {
                true => lines.recv_timeout(SYNC),
                false => lines.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match next {
                Ok(line) => {
                    self.write(&line);
                    unsynced = true;
                }
                Err(timeout) => {
                    // What it says is that of the next line, too.
                    let _ = self.open.as_ref().map(|(file, _)| file.sync_data());
                    unsynced = false;
                    if timeout == RecvTimeoutError::Disconnected {
                        return;
                    }
                }
            }
        }
    }

    fn write(&mut self, line: &[u8]) {
        let result = self.append(line);
        let said = result.err().map(|error| {
            format!("{}: {error}: events are not kept on disk until it is mended", self.path.display())
        });
        *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = said;
    }

    fn append(&mut self, line: &[u8]) -> io::Result<()> {
        // Somebody may have removed or replaced it.
        if self.open.as_ref().is_some_and(|(file, _)| file.metadata().is_ok_and(|found| found.nlink() == 0)) {
            self.open = None;
        }
        if self.open.as_ref().is_some_and(|(_, len)| len + line.len() as u64 > self.most) {
            fs::rename(&self.path, &self.old)?;
            self.open = None;
        }
        let (file, len) = match &mut self.open {
            Some(open) => open,
            None => self.open.insert(open(&self.path)?),
        };
        if let Err(error) = file.write_all(line) {
            // A part of it may be there.
            let _ = file.set_len(*len);
            return Err(error);
        }
        *len += line.len() as u64;
        Ok(())
    }
}

/// Opens the file for lines behind its last one, which is ended where a crash has torn it.
fn open(path: &Path) -> io::Result<(fs::File, u64)> {
    let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    let torn = fs::read(path)?.last().is_some_and(|last| *last != b'\n');
    if torn {
        file.write_all(b"\n")?;
    }
    let len = file.metadata()?.len();
    Ok((file, len))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(number: u64) -> LogEntry {
        LogEntry {
            unix_seconds: number,
            event: "failed".into(),
            tunnel: None,
            child: None,
            reason: None,
            text: "failed: no matter".into(),
            times: 1,
        }
    }

    fn kept(folder: &Path) -> Vec<u64> {
        File::with(folder, MOST).1.iter().map(|entry| entry.unix_seconds).collect()
    }

    #[test]
    fn it_is_bounded_and_the_newest_stay() {
        let folder = tempfile::tempdir().expect("temporary directory");
        let (file, _) = File::with(folder.path(), 4096);
        (0..1000).for_each(|number| file.append(&entry(number)));
        drop(file);
        let octets = |name: &str| fs::metadata(folder.path().join(name)).expect("there").len();
        assert!(octets(NAME) <= 4096 && octets(OLD) <= 4096);
        let kept = kept(folder.path());
        assert_eq!(kept.last(), Some(&999));
        assert!(kept.len() > 20 && kept.windows(2).all(|two| two[0] + 1 == two[1]), "{kept:?}");
    }

    #[test]
    fn a_torn_line_is_passed_over_and_the_next_one_is_whole() {
        let folder = tempfile::tempdir().expect("temporary directory");
        let (file, _) = File::with(folder.path(), MOST);
        (1..=2).for_each(|number| file.append(&entry(number)));
        drop(file);
        let path = folder.path().join(NAME);
        let text = fs::read(&path).expect("there");
        for cut in text.len() / 2 + 1..text.len() - 1 {
            fs::write(&path, &text[..cut]).expect("ours");
            let (file, found) = File::with(folder.path(), MOST);
            assert_eq!(found, [entry(1)]);
            file.append(&entry(3));
            drop(file);
            assert_eq!(kept(folder.path()), [1, 3]);
        }
    }

    #[test]
    fn a_full_disk_is_told_until_there_is_room() {
        let folder = tempfile::tempdir().expect("temporary directory");
        let path = folder.path().join(NAME);
        // The kernel's own full disk.
        std::os::unix::fs::symlink("/dev/full", &path).expect("ours");
        let mut writer = Writer {
            path: path.clone(),
            old: folder.path().join(OLD),
            most: MOST,
            open: OpenOptions::new().append(true).open(&path).ok().map(|file| (file, 0)),
            problem: Arc::default(),
        };
        writer.write(b"{}\n");
        let said = writer.problem.lock().expect("whole").clone().expect("a problem");
        assert!(said.contains("No space left on device") && said.contains("events are not kept"), "{said}");
        fs::remove_file(&path).expect("ours");
        writer.open = None;
        writer.write(b"{}\n");
        assert_eq!(*writer.problem.lock().expect("whole"), None);
        assert_eq!(fs::read(&path).expect("there"), b"{}\n");
    }
}
