//! Where the shared region stands: a configuration enters, a directory and a capacity leave. Huge pages where they are
//! mounted and enough, tmpfs elsewhere.

use std::path::{Path, PathBuf};

use penstock_tables::Capacity;
use penstock_tables::layout::{StateLayout, TablesLayout};

use crate::config::{self, Config, HugePages};

/// Huge pages were asked for and are not there.
#[derive(Debug, thiserror::Error)]
#[error(
    "memory.hugepages is on, but no hugetlbfs is mounted: `mount -t hugetlbfs none /dev/hugepages`, or set memory.directory"
)]
pub struct NoHugetlbfs;

/// What the region is made for.
pub fn capacity(config: &Config) -> Capacity {
    let config::Capacity { tunnels, replay_window, routes, neighbours } = config.capacity.clone();
    Capacity { tunnels, replay_window, neighbours, fib_groups: routes }
}

/// The directory of the region's two files. One that is in use already stays where it is.
///
/// # Errors
/// [`NoHugetlbfs`] where the configuration insists on huge pages.
pub fn directory(config: &Config) -> Result<PathBuf, NoHugetlbfs> {
    if let Some(path) = config.memory.directory.path() {
        return Ok(path.to_path_buf());
    }
    let below = |root: &Path| root.join("penstock").join(&config.name);
    let plain = below(Path::new("/dev/shm"));
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let huge = hugetlbfs(&mounts).map(|root| below(&root));
    match (config.memory.hugepages, huge) {
        (HugePages::On, huge) => huge.ok_or(NoHugetlbfs),
        (HugePages::Off, _) | (HugePages::Auto, None) => Ok(plain),
        (HugePages::Auto, Some(huge)) if huge.join("tables").exists() => Ok(huge),
        (HugePages::Auto, Some(_)) if plain.join("tables").exists() => Ok(plain),
        (HugePages::Auto, Some(huge)) => {
            Ok(if free_mebibytes() >= needed_mebibytes(config) { huge } else { plain })
        }
    }
}

/// Where hugetlbfs is mounted, by the text of `/proc/self/mounts`.
fn hugetlbfs(mounts: &str) -> Option<PathBuf> {
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    fields.into_iter().find(|fields| fields.get(2) == Some(&"hugetlbfs")).map(|fields| fields[1].into())
}

/// What the region and DPDK take together, each of the region's files rounded up to a page.
fn needed_mebibytes(config: &Config) -> u64 {
    let capacity = capacity(config);
    let region = TablesLayout::new(capacity).len as u64 + StateLayout::new(capacity).len as u64;
    (region >> 20) + 4 + u64::from(config.memory.megabytes)
}

/// Free huge pages of 2 MiB, which is what hugetlbfs gives unless it is mounted otherwise.
fn free_mebibytes() -> u64 {
    let free = std::fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
    free.ok().and_then(|text| text.trim().parse::<u64>().ok()).unwrap_or(0) * 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Machine;

    fn config(memory: &str) -> Config {
        let text = format!("name: x\nmemory: {memory}\nports: {{a: {{device: net_null0}}}}\n");
        let machine = Machine { cores: vec![0, 1], interfaces: Vec::new() };
        Config::parse(Path::new("x.yaml"), &text, &machine).expect("good").config
    }

    #[test]
    fn the_directory_follows_from_the_file() {
        assert_eq!(directory(&config("{directory: /a/b}")).expect("named"), Path::new("/a/b"));
        assert_eq!(directory(&config("{hugepages: off}")).expect("tmpfs"), Path::new("/dev/shm/penstock/x"));
    }

    #[test]
    fn the_mount_is_found() {
        let mounts = "proc /proc proc rw 0 0\nnone /mnt/huge hugetlbfs rw,pagesize=2M 0 0\n";
        assert_eq!(hugetlbfs(mounts), Some("/mnt/huge".into()));
        assert_eq!(hugetlbfs("proc /proc proc rw 0 0\n"), None);
    }

    #[test]
    fn capacity_is_handed_on() {
        let made = capacity(&config("{}"));
        assert_eq!(
            (made.tunnels, made.replay_window, made.neighbours, made.fib_groups),
            (1024, 1024, 4096, 16384)
        );
        assert!(needed_mebibytes(&config("{}")) > 256);
    }
}
