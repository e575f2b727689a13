//! Keeps the memory of a process out of core dumps: both processes hold keys on heap and stack, not in the region alone.
//!
//! The kernel dumps no process that is not dumpable, wherever `core_pattern` leads. A debugger of root (`gcore`) cannot be
//! refused; it obeys the filter, so what it writes has no memory in it. The registers of that moment it always has.

use std::io;

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

/// Leaves all memory of this process, and of the programs that it starts, out of core dumps. Called first of all.
///
/// # Errors
/// Where the kernel refuses one of the three ways; the others are taken all the same.
pub fn leave_out() -> io::Result<()> {
    // First: the files of a process that is not dumpable belong to root.
    let filter = std::fs::write("/proc/self/coredump_filter", "0");
    let limit = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    let dumpable = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    filter.and(limit.map_err(io::Error::from)).and(dumpable.map_err(io::Error::from))
}
