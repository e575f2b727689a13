//! DPDK's start and end, threads and pools.

use std::fs;
use std::thread;

use penstock_dataplane::dpdk::{Device, Eal, EalConfig, Error, LogLevel, Memory, Pool, PoolConfig, clock};
use penstock_dataplane::port::{BURST, Burst, Frame, Port};

use crate::lab;

/// Huge pages of 2 MiB that a test adds, and takes away again.
struct HugePages(u32);

const HUGE_PAGES: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";

fn change_huge_pages(change: impl Fn(u32) -> u32) -> u32 {
    let count = || fs::read_to_string(HUGE_PAGES).expect("this kernel has huge pages").trim().parse::<u32>();
    let before = count().expect("a number");
    fs::write(HUGE_PAGES, change(before).to_string()).expect("huge pages can be reserved");
    count().expect("a number").abs_diff(before)
}

impl HugePages {
    fn reserve(wanted: u32) -> HugePages {
        HugePages(change_huge_pages(|before| before + wanted))
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        change_huge_pages(|before| before.saturating_sub(self.0));
    }
}

pub fn starts_on_huge_pages() {
    let pages = HugePages::reserve(128);
    assert!(pages.0 >= 64, "only {} huge pages could be reserved", pages.0);
    let mut config = EalConfig { memory: Memory::HugePages { reserve_mib: 1 << 20 }, ..lab::config() };
    let error = Eal::init(&config).unwrap_err();
    assert!(matches!(error, Error::TooFewHugePages { wanted_mib: 1_048_576, .. }), "{error}");

    config.memory = Memory::HugePages { reserve_mib: 64 };
    let eal = Eal::init(&config).expect("DPDK starts on huge pages after all");
    let pool = lab::pool(&eal);
    let (_device, mut ports) = lab::start(&eal, &pool, "net_ring0", 1);
    let frames = lab::numbered_frames(500);
    for some in frames.chunks(100) {
        lab::send_all(&mut ports[0], some);
        assert_eq!(lab::receive(&mut ports[0], 100, lab::is_numbered), some);
    }
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let used = status.lines().find_map(|line| line.strip_prefix("HugetlbPages:")?.strip_suffix("kB"));
    let used: u32 = used.expect("the kernel tells").trim().parse().unwrap();
    assert!(used >= 64 * 1024, "only {used} KiB of huge pages are mapped");
}

pub fn says_how_to_get_huge_pages() {
    // A kernel without huge pages, as far as this mount namespace sees.
    lab::run("mount -t tmpfs none /sys/kernel/mm/hugepages");
    let config = EalConfig { memory: Memory::HugePages { reserve_mib: 0 }, ..lab::config() };
    let error = Eal::init(&config).unwrap_err().to_string();
    assert!(error.contains("no free huge page"), "{error}");
    assert!(error.contains("nr_hugepages") && error.contains("hugepages: off"), "{error}");
    // Nothing is spent yet.
    let eal = Eal::init(&lab::config()).expect("DPDK starts on ordinary pages");
    assert!(eal.version().starts_with("DPDK "), "{}", eal.version());
}

pub fn says_what_is_wrong_with_the_start() {
    let config = EalConfig { main_core: 4000, log_level: LogLevel::Critical, ..lab::config() };
    let error = Eal::init(&config).unwrap_err();
    assert!(matches!(error, Error::Start { .. }), "{error}");
    let text = error.to_string();
    assert!(text.starts_with("DPDK does not start: ") && text.contains("DPDK's log: EAL: "), "{text}");
    assert!(text.contains("check the core"), "{text}");
    assert!(matches!(Eal::init(&lab::config()), Err(Error::AlreadyStarted)), "the process is spent");
}

pub fn cleans_up_behind_itself() {
    let config = lab::config();
    let eal = Eal::init(&config).unwrap();
    let again = Eal::init(&config).unwrap_err();
    assert!(matches!(again, Error::AlreadyStarted), "{again}");
    assert!((100_000_000..10_000_000_000).contains(&clock::tsc_hz(&eal)), "{}", clock::tsc_hz(&eal));
    assert!(clock::tsc() < clock::tsc());
    let pool = lab::pool(&eal);
    let (device, ports) = lab::start(&eal, &pool, "net_tap0,iface=dtap0", 1);
    assert!(lab::run("ip -o link").contains("dtap0"));
    // The environment first and the queues last, against all order.
    drop(eal);
    drop(device);
    assert!(lab::run("ip -o link").contains("dtap0"), "the queues still hold the device");
    assert!(pool.in_use() > 0, "the receive queue holds frames");
    drop(ports);
    assert!(!lab::run("ip -o link").contains("dtap0"), "the device is gone with its last handle");
    assert_eq!(pool.in_use(), 0);
    drop(pool);
    // The folder of the case is DPDK's runtime folder.
    let left = |folder: &str| fs::read_dir(folder).into_iter().flatten().flatten().collect::<Vec<_>>();
    assert!(left("dpdk").is_empty(), "{:?}", left("dpdk"));
    assert!(left(".").len() <= 1, "{:?}", left("."));
    assert!(matches!(Eal::init(&config), Err(Error::AlreadyStarted)), "cleaned up is not never started");
}

pub fn registers_threads_once() {
    let eal = lab::eal();
    let main = eal.register_thread().unwrap_err();
    assert!(matches!(main, Error::ThreadTwice), "the thread that started DPDK: {main}");
    let pool = lab::pool(&eal);
    let work = |core: core_affinity::CoreId| {
        assert!(core_affinity::set_for_current(core));
        for _ in 0..300 {
            let registered = eal.register_thread().unwrap();
            assert!(matches!(eal.register_thread(), Err(Error::ThreadTwice)));
            let mut burst = Burst::new();
            assert!(pool.allocate_burst(&mut burst, BURST));
            drop((burst, registered));
        }
        // Without being registered a thread has no cache, and pools work all the same.
        drop(pool.allocate().unwrap());
    };
    // The main lcore is pinned: its own affinity says nothing about the machine's cores.
    thread::scope(|scope| {
        for id in 0..core_count().min(2) {
            scope.spawn(move || work(core_affinity::CoreId { id }));
        }
    });
    assert_eq!((pool.in_use(), pool.available()), (0, pool.capacity()));
}

fn core_count() -> usize {
    fs::read_to_string("/proc/cpuinfo").expect("procfs is mounted").matches("processor\t").count()
}

pub fn counts_frames_and_refuses_bad_pools() {
    let eal = lab::eal();
    let pool = Pool::new(&eal, "small", &PoolConfig { frames: 100, ..PoolConfig::default() }).unwrap();
    assert_eq!((pool.capacity(), pool.available(), pool.in_use()), (100, 100, 0));
    let mut burst = Burst::new();
    assert!(pool.allocate_burst(&mut burst, BURST));
    assert!(burst.is_full() && !pool.allocate_burst(&mut burst, 1));
    let mut second = Burst::new();
    assert!(!pool.allocate_burst(&mut second, 37) && second.is_empty(), "all or none");
    assert!(pool.allocate_burst(&mut second, 36));
    assert!(pool.allocate().is_none());
    assert_eq!((pool.available(), pool.in_use()), (0, 100));
    drop(second.pop());
    drop(burst.drain(..10));
    assert_eq!(pool.in_use(), 89);
    edit(&mut burst[0]);
    drop((burst, second));
    assert_eq!((pool.available(), pool.in_use()), (100, 0));

    for name in ["", "with space", "a-name-that-is-much-too-long", "zero\0"] {
        assert!(
            matches!(Pool::new(&eal, name, &PoolConfig::default()), Err(Error::PoolName { .. })),
            "{name:?}"
        );
    }
    let taken = Pool::new(&eal, "small", &PoolConfig::default()).unwrap_err().to_string();
    assert!(taken.contains("pool small of 16384 frames") && taken.contains("exists"), "{taken}");
    let large = PoolConfig { frames: 4_000_000, ..PoolConfig::default() };
    let large = Pool::new(&eal, "large", &large).unwrap_err().to_string();
    assert!(large.contains("Cannot allocate memory") && large.contains("fewer frames"), "{large}");
}

/// An mbuf grows, shrinks and refuses as frames in memory do.
fn edit(frame: &mut impl Frame) {
    frame.append(6).unwrap().copy_from_slice(b"middle");
    frame.prepend(3).unwrap().copy_from_slice(b"in ");
    frame.append(2).unwrap().copy_from_slice(b"!?");
    assert_eq!(frame.data(), b"in middle!?");
    frame.trim_front(3);
    frame.trim_back(1);
    frame.prefetch();
    frame.data_mut()[0] = b'r';
    assert_eq!((frame.data(), frame.len()), (&b"riddle!"[..], 7));
    for too_much in [129, 65_535, 65_536, usize::MAX] {
        assert!(frame.prepend(too_much).is_none(), "{too_much}");
    }
    for too_much in [2048 - 7 + 1, 65_535 - 7, 65_536, usize::MAX] {
        assert!(frame.append(too_much).is_none(), "{too_much}");
    }
    assert_eq!(frame.data(), b"riddle!");
    assert_eq!(frame.prepend(128).map(|room| room.len()), Some(128));
    assert_eq!(frame.append(2048 - 7).map(|room| room.len()), Some(2041));
    assert_eq!(frame.len(), 2176);
    frame.trim_front(usize::MAX);
    frame.trim_back(usize::MAX);
    assert!(frame.is_empty());
}

pub fn keeps_a_pool_whose_frames_are_held() {
    let eal = lab::eal();
    let pool = lab::pool(&eal);
    let (device, mut ports) = lab::start(&eal, &pool, "net_ring0", 1);
    let mut held = lab::frame(&mut ports[0], b"still here");
    let mut burst = Burst::new();
    burst.extend(ports[0].allocate());
    drop((device, ports));
    assert_eq!(pool.in_use(), 2);
    drop((pool, eal));
    held.data_mut()[0] = b'S';
    assert_eq!(held.data(), b"Still here");
    drop((held, burst));
}

pub fn says_which_privileges_lack() {
    let eal = Eal::init(&lab::config()).expect("DPDK starts without privileges on ordinary pages");
    for device in ["net_tap0,iface=dtap0", "net_af_packet0,iface=lo"] {
        let error = Device::open(&eal, &device.parse().unwrap()).unwrap_err().to_string();
        assert!(error.contains(device) && error.contains("run as root, or with CAP_NET_ADMIN"), "{error}");
    }
}
