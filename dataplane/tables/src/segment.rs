//! One segment: a file of mode 0600 on hugetlbfs or tmpfs, mapped writable by the one process that owns it and read-only
//! by the other. It survives both. Its pages are kept out of core dumps and, where the limit allows, out of swap.
//!
//! The header tells what the file is; one that another version made, that is truncated or foreign is refused.

#![allow(unsafe_code)]

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use memmap2::{Advice, MmapOptions, MmapRaw};

use crate::layout::{Capacity, layout_hash};

const MAGIC: u64 = u64::from_be_bytes(*b"PENSTOCK");
/// Version of the layout; raised with every change that the layout hash cannot see.
pub const ABI: u32 = 2;

/// Which of the two segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// Written by control.
    Tables = 1,
    /// Written by the data plane.
    State = 2,
}

impl Kind {
    /// The file's name in the region's directory.
    pub const fn file(self) -> &'static str {
        match self {
            Kind::Tables => "tables",
            Kind::State => "state",
        }
    }

    const fn owner(self) -> &'static str {
        match self {
            Kind::Tables => "penstock (control)",
            Kind::State => "penstock-dataplane",
        }
    }
}

/// Why a segment cannot be used. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum RegionError {
    /// Another process has the role.
    #[error("another {owner} already runs on {path}: stop it first, or give this one another `name`")]
    InUse {
        /// The process whose role is taken.
        owner: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// Made by another version.
    #[error(
        "{path} was made by another version of Penstock (ABI {found}, this is ABI {ABI}, or the layouts differ): stop \
         both processes, remove {path} and its twin, and start both from one release; tunnels are set up anew"
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// The version that it says.
        found: u32,
    },
    /// No segment of ours, or a damaged one.
    #[error("{path} is no Penstock segment ({why}): stop both processes and remove the file")]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The capacity in the configuration is not that of the file.
    #[error(
        "{path} was made for another `capacity` ({found:?}): stop both processes and remove the region, or restore the old capacity"
    )]
    Capacity {
        /// The file.
        path: PathBuf,
        /// What it was made for.
        found: Capacity,
    },
    /// The figures are out of bounds.
    #[error(transparent)]
    Bounds(#[from] crate::layout::CapacityError),
    /// The other process has not made it yet.
    #[error("{path} is not there yet: start {owner} first")]
    Missing {
        /// The file.
        path: PathBuf,
        /// Who makes it.
        owner: &'static str,
    },
    /// No permission.
    #[error("no permission on {path}: run as the user that owns it (root, usually)")]
    Permission {
        /// The file or directory.
        path: PathBuf,
    },
    /// No room.
    #[error(
        "no room for {octets} octets in {path}: free memory there (on hugetlbfs, HugePages_Free of /proc/meminfo says \
         what is left), lower `capacity`, or set `memory.directory`"
    )]
    Full {
        /// The file.
        path: PathBuf,
        /// How much was asked for.
        octets: usize,
    },
    /// Anything else the kernel says.
    #[error("{path}: {error}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The kernel's word.
        error: io::Error,
    },
}

impl RegionError {
    fn io(path: &Path, octets: usize, error: io::Error) -> RegionError {
        let path = path.to_path_buf();
        match error.kind() {
            io::ErrorKind::PermissionDenied => RegionError::Permission { path },
            io::ErrorKind::StorageFull | io::ErrorKind::OutOfMemory | io::ErrorKind::QuotaExceeded => {
                RegionError::Full { path, octets }
            }
            _ => RegionError::Io { path, error },
        }
    }
}

/// Types that may stand in a segment.
///
/// # Safety
/// Any bit pattern is a value, there is no padding that matters, no pointer and no drop glue that touches other memory.
pub unsafe trait Shared {}

/// The first page of a segment.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Header {
    magic: AtomicU64,
    abi: AtomicU32,
    kind: AtomicU32,
    layout: AtomicU64,
    capacity: [AtomicU32; 4],
    /// Random number of this file's birth; never changes.
    epoch: AtomicU64,
    /// Random number of the owner's present run.
    pub(crate) instance: AtomicU64,
    /// Process that owns it now.
    pub(crate) pid: AtomicU32,
    /// `tables`: most steps that an inbound lookup probes. `state`: workers that run.
    pub(crate) figure: AtomicU32,
    /// `state`: frequency of the TSC in Hz. `tables`: configuration generation.
    pub(crate) word: AtomicU64,
}

// SAFETY: `repr(C)`, made of atomics.
unsafe impl Shared for Header {}

impl Header {
    /// The low half of the birth number, as SAs carry it; never 0.
    pub fn epoch(&self) -> u32 {
        (self.epoch.load(Ordering::Acquire) as u32).max(1)
    }

    fn capacity(&self) -> Capacity {
        let [tunnels, replay_window, neighbours, fib_groups] =
            [0, 1, 2, 3].map(|at: usize| self.capacity[at].load(Ordering::Acquire));
        Capacity { tunnels, replay_window, neighbours, fib_groups }
    }

    fn fill(&self, kind: Kind, capacity: Capacity) {
        let Capacity { tunnels, replay_window, neighbours, fib_groups } = capacity;
        let figures = [tunnels, replay_window, neighbours, fib_groups];
        self.capacity.iter().zip(figures).for_each(|(word, figure)| word.store(figure, Ordering::Relaxed));
        self.abi.store(ABI, Ordering::Relaxed);
        self.kind.store(kind as u32, Ordering::Relaxed);
        self.layout.store(layout_hash(), Ordering::Relaxed);
        self.epoch.store(random(), Ordering::Relaxed);
        // Last, so that a file whose maker died half-way is seen as foreign, not as empty.
        self.magic.store(MAGIC, Ordering::Release);
    }
}

/// 64 random bits from the kernel.
pub(crate) fn random() -> u64 {
    getrandom::u64().expect("the kernel gives random numbers")
}

/// A mapped segment.
#[derive(Debug)]
pub struct Segment {
    map: MmapRaw,
    file: File,
    path: PathBuf,
    capacity: Capacity,
}

// SAFETY: the mapping is plain memory that stays where it is until drop; what stands in it is atomic, or written only
// under `&mut self` while no reader looks (`slot`, `quiescence`).
unsafe impl Send for Segment {}
// SAFETY: as above.
unsafe impl Sync for Segment {}

impl Segment {
    /// Owner's side: takes the role, then maps the file, made new where there is none. Says whether it was there.
    pub fn own(
        directory: &Path,
        kind: Kind,
        capacity: Capacity,
        len: usize,
    ) -> Result<(Segment, bool), RegionError> {
        let capacity = capacity.check()?;
        let path = directory.join(kind.file());
        let failed = |error| RegionError::io(&path, len, error);
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
        let mut options = OpenOptions::new();
        let file = options
            .read(true)
            .write(true)
            .create(true)
            .mode(0o600)
            .truncate(false)
            .open(&path)
            .map_err(failed)?;
        take_role(&file, &path, kind)?;
        let len = len.next_multiple_of(page_size(&file));
        let old = file.metadata().map_err(failed)?.len();
        if old == 0 {
            if let Err(error) = reserve(&file, len) {
                // An empty file tells nothing to the next start.
                let _ = file.set_len(0);
                return Err(failed(error));
            }
        } else if old != len as u64 {
            return Err(mismatch(&file, &path, kind, capacity, len));
        }
        let segment = Segment::map(file, path, capacity, len, true)?;
        let header = segment.header();
        if header.magic.load(Ordering::Acquire) == 0 && (old == 0 || segment.is_blank()) {
            header.fill(kind, capacity);
        }
        segment.verify(kind, Some(capacity))?;
        segment.header().instance.store(random(), Ordering::Release);
        segment.header().pid.store(std::process::id(), Ordering::Release);
        Ok((segment, old != 0))
    }

    /// The other process's side: read-only, so that page protection holds the rule of one writer.
    pub fn view(
        directory: &Path,
        kind: Kind,
        layout: impl Fn(Capacity) -> usize,
    ) -> Result<Segment, RegionError> {
        let path = directory.join(kind.file());
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(RegionError::Missing { path, owner: kind.owner() });
            }
            Err(error) => return Err(RegionError::io(&path, 0, error)),
        };
        let len = file.metadata().map_err(|error| RegionError::io(&path, 0, error))?.len() as usize;
        if len < size_of::<Header>() {
            return Err(RegionError::Foreign { path, why: format!("it has {len} octets") });
        }
        let capacity = Capacity { tunnels: 1, replay_window: 64, neighbours: 1, fib_groups: 1 };
        let mut segment = Segment::map(file, path, capacity, len, false)?;
        segment.verify(kind, None)?;
        segment.capacity = segment.header().capacity();
        let wanted = layout(segment.capacity);
        if len < wanted {
            let why = format!("it has {len} octets, its header promises {wanted}");
            return Err(RegionError::Foreign { path: segment.path.clone(), why });
        }
        Ok(segment)
    }

    fn map(
        file: File,
        path: PathBuf,
        capacity: Capacity,
        len: usize,
        write: bool,
    ) -> Result<Segment, RegionError> {
        let mut options = MmapOptions::new();
        options.len(len);
        let map = if write { options.map_raw(&file) } else { options.map_raw_read_only(&file) };
        let map = map.map_err(|error| RegionError::io(&path, len, error))?;
        map.advise(Advice::DontDump).map_err(|error| RegionError::io(&path, len, error))?;
        // Swapped-out keys would outlive us on disk; without the right to lock (no root) they are as safe as any memory.
        let _ = map.lock();
        Ok(Segment { map, file, path, capacity })
    }

    fn is_blank(&self) -> bool {
        let header = self.header();
        header.abi.load(Ordering::Relaxed) == 0 && header.epoch.load(Ordering::Relaxed) == 0
    }

    fn verify(&self, kind: Kind, capacity: Option<Capacity>) -> Result<(), RegionError> {
        let header = self.header();
        let path = self.path.clone();
        if header.magic.load(Ordering::Acquire) != MAGIC {
            return Err(RegionError::Foreign { path, why: "it does not start with Penstock's mark".into() });
        }
        let (abi, layout) = (header.abi.load(Ordering::Acquire), header.layout.load(Ordering::Acquire));
        if abi != ABI || layout != layout_hash() {
            return Err(RegionError::Version { path, found: abi });
        }
        if header.kind.load(Ordering::Acquire) != kind as u32 {
            return Err(RegionError::Foreign {
                path,
                why: format!("it is not the segment `{}`", kind.file()),
            });
        }
        let found = header.capacity();
        if found.check().is_err() {
            return Err(RegionError::Foreign { path, why: "its capacity is out of bounds".into() });
        }
        match capacity {
            Some(wanted) if wanted != found => Err(RegionError::Capacity { path, found }),
            _ => Ok(()),
        }
    }

    /// The first page.
    pub fn header(&self) -> &Header {
        self.at(0)
    }

    /// What the file was made for.
    pub fn capacity(&self) -> Capacity {
        self.capacity
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the process that owns the file lives (asks for its lock).
    pub fn owner_lives(&self) -> bool {
        match self.file.try_lock_shared() {
            Ok(()) => {
                let _ = self.file.unlock();
                false
            }
            Err(_) => true,
        }
    }

    /// Whether the file at the path is still this one.
    pub fn is_current(&self) -> bool {
        let mine = self.file.metadata().map(|meta| (meta.dev(), meta.ino()));
        let there = std::fs::metadata(&self.path).map(|meta| (meta.dev(), meta.ino()));
        matches!((mine, there), (Ok(mine), Ok(there)) if mine == there)
    }

    /// One value at an offset that a layout gave.
    #[inline(always)]
    pub(crate) fn at<T: Shared>(&self, offset: usize) -> &T {
        &self.slice(offset, 1)[0]
    }

    /// `count` values from an offset that a layout gave.
    #[inline(always)]
    pub(crate) fn slice<T: Shared>(&self, offset: usize, count: usize) -> &[T] {
        let end = count.checked_mul(size_of::<T>()).and_then(|octets| octets.checked_add(offset));
        assert!(end.is_some_and(|end| end <= self.map.len()) && offset.is_multiple_of(align_of::<T>()));
        // SAFETY: in bounds and aligned (asserted; the mapping is page-aligned); any bit pattern is a `T` (`Shared`);
        // the memory lives as long as `self`. What is not atomic in it is written only by the slot protocol, while no
        // reference exists.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().add(offset).cast::<T>(), count) }
    }

    /// The same as [`Segment::slice`], to be kept beside the segment.
    pub(crate) fn array<T: Shared>(&self, offset: usize, count: usize) -> Array<T> {
        let slice: &[T] = self.slice(offset, count);
        Array { start: NonNull::from(slice).cast(), len: slice.len() }
    }

    /// Owner's side: overwrites one value. The slot protocol says when no reader holds it.
    pub(crate) fn write<T: Shared>(&mut self, offset: usize, value: T) {
        assert!(offset + size_of::<T>() <= self.map.len() && offset.is_multiple_of(align_of::<T>()));
        // SAFETY: in bounds and aligned (asserted); `&mut self` excludes this process's references, the slot protocol
        // the other's; the segment was mapped writable, since only owners have `&mut`-taking callers.
        unsafe { self.map.as_mut_ptr().add(offset).cast::<T>().write(value) }
    }

    /// Owner's side: zeroes a value so that the compiler cannot leave it out.
    pub(crate) fn wipe<T: Shared>(&mut self, offset: usize) {
        const { assert!(size_of::<T>().is_multiple_of(8)) };
        assert!(offset + size_of::<T>() <= self.map.len() && offset.is_multiple_of(8));
        // By words: eight times as fast as by octets. SAFETY: in bounds and aligned (asserted); exclusive as in `write`.
        let words = unsafe {
            std::slice::from_raw_parts_mut(
                self.map.as_mut_ptr().add(offset).cast::<u64>(),
                size_of::<T>() / 8,
            )
        };
        zeroize::Zeroize::zeroize(words);
    }

    /// Owner's side: wipes everything and removes the file. For a clean end only.
    pub fn remove(self) -> Result<(), RegionError> {
        let len = self.map.len();
        // SAFETY: the whole mapping, which is a number of pages; this process owns it, the other maps it read-only and is
        // told by the header's mark going away.
        zeroize::Zeroize::zeroize(unsafe {
            std::slice::from_raw_parts_mut(self.map.as_mut_ptr().cast::<u64>(), len / 8)
        });
        std::fs::remove_file(&self.path).map_err(|error| RegionError::io(&self.path, 0, error))
    }
}

/// An array of a segment whose place was checked once. It lives in one struct with its segment, and no longer.
#[derive(Debug)]
pub(crate) struct Array<T> {
    start: NonNull<T>,
    len: usize,
}

// SAFETY: a pointer into a mapping that is `Send` and `Sync` itself.
unsafe impl<T: Shared> Send for Array<T> {}
// SAFETY: as above.
unsafe impl<T: Shared> Sync for Array<T> {}

impl<T: Shared> Array<T> {
    /// The value at `index`.
    #[inline(always)]
    pub(crate) fn get(&self, index: usize) -> &T {
        assert!(index < self.len);
        // SAFETY: in bounds (asserted) of a slice that `Segment::slice` checked; the mapping lives, since the segment
        // stands beside this in its owner.
        unsafe { self.start.add(index).as_ref() }
    }

    /// Asks the CPU to fetch the cache line at octet `offset` of the value at `index`; nothing where there is none.
    #[inline(always)]
    pub(crate) fn prefetch(&self, index: usize, offset: usize) {
        if index < self.len && offset < size_of::<T>() {
            // SAFETY: in bounds; a hint reads nothing that the program sees.
            #[cfg(target_arch = "x86_64")]
            unsafe {
                use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
                _mm_prefetch::<_MM_HINT_T0>(self.start.add(index).byte_add(offset).as_ptr().cast());
            }
        }
    }

    /// All of it.
    #[inline(always)]
    pub(crate) fn as_slice(&self) -> &[T] {
        // SAFETY: as in `get`, for every index.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

/// Takes the owner's lock; a reader that asks whether the owner lives may hold it for an instant.
fn take_role(file: &File, path: &Path, kind: Kind) -> Result<(), RegionError> {
    for _ in 0..50 {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) => std::thread::sleep(std::time::Duration::from_millis(10)),
            Err(TryLockError::Error(error)) => return Err(RegionError::io(path, 0, error)),
        }
    }
    Err(RegionError::InUse { owner: kind.owner(), path: path.to_path_buf() })
}

fn page_size(file: &File) -> usize {
    file.metadata().map_or(4096, |meta| (meta.blksize() as usize).max(4096))
}

/// Takes the room now: a full tmpfs is an error here and not a bus error later.
fn reserve(file: &File, len: usize) -> io::Result<()> {
    rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, len as u64).map_err(io::Error::from)
}

/// Says why a file has another length than the configuration asks for.
fn mismatch(file: &File, path: &Path, kind: Kind, capacity: Capacity, len: usize) -> RegionError {
    let found = file.metadata().map_or(0, |meta| meta.len());
    let foreign = RegionError::Foreign {
        path: path.to_path_buf(),
        why: format!("it has {found} octets instead of {len}"),
    };
    let Ok(file) = file.try_clone() else { return foreign };
    if (found as usize) < size_of::<Header>() {
        return foreign;
    }
    match Segment::map(file, path.to_path_buf(), capacity, found as usize, false) {
        Ok(segment) => segment.verify(kind, Some(capacity)).err().unwrap_or(foreign),
        Err(_) => foreign,
    }
}
