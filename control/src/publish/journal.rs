//! What must survive a reboot while lab keys are used: for each chain of keys its generation, and the last sequence number
//! that was granted to it. A grant is on disk before the data plane may use it (so no nonce is used twice, RFC 4106
//! section 3.1, whatever crashes). One line a record, appended; rewritten when it has grown.

use std::collections::HashMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::lab::ChainId;

/// What is known of a chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Generation that sends.
    pub generation: u32,
    /// Last sequence number granted to it.
    pub granted: u64,
}

/// Why the journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The kernel refused.
    #[error("{path}: {error}: tunnels with lab keys need it, so make it writable or set state_directory")]
    Io {
        /// The file.
        path: PathBuf,
        /// The kernel's word.
        error: io::Error,
    },
    /// A line cannot be read.
    #[error(
        "{path}:{line}: not a record of the journal: put back a good copy; without one remove it and change every lab \
         secret and fixed key, since the numbers that were used with them are lost"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
    },
    /// Somebody else put a file there, or writes it, while the gateway runs.
    #[error(
        "{path} is not what this gateway wrote any more: no number is granted until it is moved away (it is then written \
         anew, whole); no other gateway may have this state_directory"
    )]
    Foreign {
        /// The file.
        path: PathBuf,
    },
}

/// The journal of one gateway.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    records: HashMap<ChainId, Record>,
    lines: usize,
    /// Octets of the file.
    len: u64,
    looked: Instant,
}

/// How often the file is looked at.
const LOOK: Duration = Duration::from_secs(1);

const NAME: &str = "sequence.journal";

/// First line of the file. Writing it shows at the start, not at the first grant, that the disk takes anything.
const HEAD: &str = "penstock sequence journal 1\n";

/// In place of the count of lines: the last line may be half there, so the file is rewritten before it is appended to.
const TORN: usize = usize::MAX;

impl Journal {
    /// Opens the journal in `directory`, which is made where it is not there.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn open(directory: &Path) -> Result<Journal, JournalError> {
        let path = directory.join(NAME);
        let failed = |error| JournalError::Io { path: path.clone(), error };
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
        let mut options = OpenOptions::new();
        let mut file =
            options.read(true).append(true).create(true).mode(0o600).open(&path).map_err(failed)?;
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(failed)?;
        let mut records = HashMap::new();
        // Behind the last line feed stands at most a line that was being written when the machine stopped: not in use yet.
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        for (index, line) in text[..whole].lines().enumerate().skip(usize::from(text.starts_with(HEAD))) {
            let record = parse(line).ok_or(JournalError::Damaged { path: path.clone(), line: index + 1 })?;
            records.insert(record.0, record.1);
        }
        let mut journal = Journal { path, file, records, lines: TORN, len: 0, looked: Instant::now() };
        journal.rewrite()?;
        Ok(journal)
    }

    /// What is known of `chain`.
    pub fn get(&self, chain: ChainId) -> Option<Record> {
        self.records.get(&chain).copied()
    }

    /// Records all of `records` with one write to disk; they hold when this returns.
    ///
    /// # Errors
    /// [`JournalError::Io`]; nothing may be used then.
    pub fn put(&mut self, records: &[(ChainId, Record)]) -> Result<(), JournalError> {
        let changed: Vec<_> =
            records.iter().filter(|(chain, record)| self.get(*chain) != Some(*record)).collect();
        if changed.is_empty() {
            return Ok(());
        }
        self.look()?;
        if self.lines == TORN {
            self.rewrite()?;
        }
        let text: String = changed.iter().map(|(chain, record)| line(*chain, *record)).collect();
        let written = self.file.write_all(text.as_bytes()).and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            self.lines = TORN;
            return Err(self.failed(error));
        }
        self.lines += changed.len();
        self.len += text.len() as u64;
        for (chain, record) in changed {
            self.records.insert(*chain, *record);
        }
        if self.lines > 2 * self.records.len() + 4096 { self.rewrite() } else { Ok(()) }
    }

    /// Sees now and then to it that the file is there, so that its loss shows before a grant is due.
    ///
    /// # Errors
    /// As [`Journal::put`].
    pub fn watch(&mut self) -> Result<(), JournalError> {
        if self.looked.elapsed() < LOOK {
            return Ok(());
        }
        self.look()?;
        self.looked = Instant::now();
        Ok(())
    }

    /// Where the file was removed or cut short, what is known is written anew, whole: nobody knows more. Where another file
    /// is in its place, or has become longer, somebody else may have granted numbers.
    fn look(&mut self) -> Result<(), JournalError> {
        let ours = self.file.metadata().map_err(|error| self.failed(error))?;
        let found = match std::fs::metadata(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(self.failed(error)),
            Ok(found) => Some(found),
        };
        match found {
            Some(found) if (found.dev(), found.ino()) != (ours.dev(), ours.ino()) => {
                return Err(JournalError::Foreign { path: self.path.clone() });
            }
            // Half a line of ours may be there.
            Some(_) if self.lines == TORN => return Ok(()),
            Some(found) if found.len() == self.len => return Ok(()),
            Some(found) if found.len() > self.len => {
                return Err(JournalError::Foreign { path: self.path.clone() });
            }
            _ => {}
        }
        self.lines = TORN;
        self.rewrite()?;
        log::warn!("{} was removed or cut short while the gateway ran: written anew", self.path.display());
        Ok(())
    }

    fn rewrite(&mut self) -> Result<(), JournalError> {
        let next = self.path.with_extension("next");
        let directory = self.path.parent().unwrap_or(Path::new("."));
        let written = || -> io::Result<(File, u64)> {
            DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
            let mut options = OpenOptions::new();
            let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&next)?;
            let lines = self.records.iter().map(|(chain, record)| line(*chain, *record));
            let text: String = std::iter::once(HEAD.to_string()).chain(lines).collect();
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&next, &self.path)?;
            File::open(directory)?.sync_all()?;
            Ok((OpenOptions::new().append(true).open(&self.path)?, text.len() as u64))
        };
        (self.file, self.len) = written().map_err(|error| self.failed(error))?;
        self.lines = self.records.len();
        Ok(())
    }

    fn failed(&self, error: io::Error) -> JournalError {
        JournalError::Io { path: self.path.clone(), error }
    }
}

fn line(chain: ChainId, record: Record) -> String {
    format!("{chain:016x} {} {}\n", record.generation, record.granted)
}

fn parse(line: &str) -> Option<(ChainId, Record)> {
    let mut words = line.split(' ');
    let chain = ChainId::from_str_radix(words.next()?, 16).ok()?;
    let record = Record { generation: words.next()?.parse().ok()?, granted: words.next()?.parse().ok()? };
    words.next().is_none().then_some((chain, record))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(generation: u32, granted: u64) -> Record {
        Record { generation, granted }
    }

    #[test]
    fn what_was_recorded_is_there_after_a_restart() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let below = directory.path().join("made/for/it");
        let mut journal = Journal::open(&below).expect("opened");
        journal.put(&[(1, record(1, 100)), (2, record(0, 7))]).expect("written");
        journal.put(&[(1, record(2, 50))]).expect("written");
        for granted in 8..30 {
            journal.put(&[(2, record(0, granted))]).expect("written");
        }
        let journal = Journal::open(&below).expect("opened again");
        assert_eq!(
            (journal.get(1), journal.get(2), journal.get(3)),
            (Some(record(2, 50)), Some(record(0, 29)), None)
        );
        let text = std::fs::read_to_string(below.join(NAME)).expect("readable");
        assert_eq!(text.lines().count(), 3);
    }

    #[test]
    fn it_does_not_grow_without_end() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let mut journal = Journal::open(directory.path()).expect("opened");
        journal.lines = 4096;
        for granted in 1..10 {
            journal.put(&[(5, record(1, granted))]).expect("written");
        }
        let text = std::fs::read_to_string(directory.path().join(NAME)).expect("readable");
        assert!(text.lines().count() < 9, "{text}");
        assert!(text.ends_with("0000000000000005 1 9\n"), "{text}");
    }

    #[test]
    fn a_lost_file_is_written_anew_and_whole() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let below = directory.path().join("state");
        let path = below.join(NAME);
        let mut journal = Journal::open(&below).expect("opened");
        journal.put(&[(1, record(1, 100)), (2, record(3, 7))]).expect("written");
        let losses: [&dyn Fn(); 3] = [
            &|| std::fs::remove_file(&path).expect("removed"),
            &|| std::fs::remove_dir_all(&below).expect("removed"),
            &|| std::fs::write(&path, "").expect("cut short"),
        ];
        for (granted, lose) in (101..).zip(losses) {
            lose();
            journal.put(&[(1, record(1, granted))]).expect("written anew");
            let kept = Journal::open(&below).expect("opened again");
            assert_eq!((kept.get(1), kept.get(2)), (Some(record(1, granted)), Some(record(3, 7))));
            // That was a restart: the old one is gone.
            journal = kept;
        }
        // Without a grant it is noticed too.
        std::fs::remove_file(&path).expect("removed");
        journal.looked -= LOOK;
        journal.watch().expect("written anew");
        assert_eq!(Journal::open(&below).expect("opened again").get(2), Some(record(3, 7)));
    }

    #[test]
    fn nothing_is_granted_where_another_file_is_in_its_place() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join(NAME);
        let mut journal = Journal::open(directory.path()).expect("opened");
        journal.put(&[(1, record(1, 100))]).expect("written");
        let copy = std::fs::read(&path).expect("readable");
        std::fs::remove_file(&path).expect("removed");
        std::fs::write(&path, &copy).expect("written");
        let error = journal.put(&[(1, record(1, 200))]).expect_err("refused").to_string();
        assert!(error.contains("is not what this gateway wrote any more"), "{error}");
        assert_eq!((journal.get(1), std::fs::read(&path).expect("readable")), (Some(record(1, 100)), copy));
        std::fs::remove_file(&path).expect("moved away");
        journal.put(&[(1, record(1, 200))]).expect("written anew");
        let mut file = OpenOptions::new().append(true).open(&path).expect("there");
        file.write_all(b"0000000000000001 1 900\n").expect("written by somebody else");
        assert!(matches!(journal.put(&[(1, record(1, 300))]), Err(JournalError::Foreign { .. })));
    }

    #[test]
    fn a_torn_last_line_is_dropped_and_a_damaged_one_refused() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join(NAME);
        std::fs::write(&path, "000000000000000a 1 5\n000000000000000a 1 99").expect("written");
        assert_eq!(Journal::open(directory.path()).expect("opened").get(10), Some(record(1, 5)));
        std::fs::write(&path, "000000000000000a 1 5\nwords\n").expect("written");
        let error = Journal::open(directory.path()).expect_err("damaged").to_string();
        assert!(error.contains("sequence.journal:2: not a record"), "{error}");
    }
}
