//! The one build script; `dpdk-sys` uses it. Finds libdpdk by pkg-config, compiles the shim and writes the bindings.
//!
//! Nothing here knows which libraries or drivers a DPDK has: pkg-config says what to link, DPDK loads its drivers from
//! its own folder. DPDK's headers pull in the CPU's intrinsics, so libclang must be of the same release as the headers
//! it finds; where several are installed, each is tried until one can read them.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

const OLDEST_DPDK: &str = "22.11";
const CHILD: &str = "PENSTOCK_BINDGEN_CHILD";

/// What Rust may call and name.
const FUNCTIONS: &[&str] = &[
    "penstock_.*",
    "rte_dev_(probe|remove)",
    "rte_eal_(cleanup|get_runtime_dir|init)",
    "rte_eth_(rx|tx)_queue_setup",
    "rte_eth_dev_(adjust_nb_rx_tx_desc|close|configure|get_mtu|info_get|set_mtu|socket_id|start|stop)",
    "rte_eth_macaddr_get",
    "rte_eth_promiscuous_(disable|enable|get)",
    "rte_eth_stats_get",
    "rte_eth_xstats_(get|get_names)",
    "rte_get_tsc_hz",
    "rte_mempool_(avail_count|free|in_use_count)",
    "rte_pktmbuf_(free_bulk|pool_create)",
    "rte_strerror",
    "rte_thread_(register|unregister)",
    "rte_version",
];
const TYPES: &[&str] = &["penstock_.*", "rte_eth_(conf|dev_info|rx_mq_mode|stats|xstat|xstat_name)"];
const CONSTANTS: &[&str] = &["PENSTOCK_.*"];
/// Known by address only: fields inside mbufs are reached by the offsets of `penstock_mbuf_layout`.
const OPAQUE: &[&str] = &["rte_device", "rte_mbuf", "rte_mempool"];

fn main() {
    for file in ["shim.h", "shim.c"] {
        println!("cargo:rerun-if-changed={file}");
    }
    for variable in
        ["LIBCLANG_PATH", "LLVM_CONFIG_PATH", "PKG_CONFIG", "PKG_CONFIG_PATH", "PKG_CONFIG_SYSROOT_DIR"]
    {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    let flags = compiler_flags();
    if env::var_os(CHILD).is_some() {
        return write_bindings(&flags);
    }
    let mut shim = cc::Build::new();
    shim.file("shim.c").opt_level(3).std("gnu11");
    for flag in &flags {
        shim.flag(flag);
    }
    shim.compile("penstock_shim");
    // After the shim, which needs them.
    find_dpdk(true);
    run_bindgen();
}

fn find_dpdk(print_link_flags: bool) {
    let mut dpdk = pkg_config::Config::new();
    dpdk.atleast_version(OLDEST_DPDK).cargo_metadata(print_link_flags);
    if let Err(error) = dpdk.probe("libdpdk") {
        fail(&format!(
            "DPDK {OLDEST_DPDK} or later is needed to build. On Debian and Ubuntu: `apt-get install libdpdk-dev \
             pkg-config`. If DPDK is installed elsewhere, set PKG_CONFIG_PATH to the folder of libdpdk.pc.\n{error}"
        ));
    }
}

/// All that pkg-config asks for, in order: the crate of that name keeps folders and macros only, but DPDK also names a
/// header to include first and the least CPU.
fn compiler_flags() -> Vec<String> {
    find_dpdk(false);
    let program = env::var_os("PKG_CONFIG").unwrap_or_else(|| "pkg-config".into());
    let output = match Command::new(&program).args(["--cflags", "libdpdk"]).output() {
        Ok(output) if output.status.success() => output.stdout,
        failed => fail(&format!("{} --cflags libdpdk failed: {failed:?}", program.display())),
    };
    let flags = String::from_utf8_lossy(&output).split_whitespace().map(system_folder).collect::<Vec<_>>();
    flags.into_iter().flatten().collect()
}

/// Warnings are for the shim, not for DPDK's headers.
fn system_folder(flag: &str) -> Vec<String> {
    match flag.strip_prefix("-I") {
        Some(folder) => vec!["-isystem".into(), folder.into()],
        None => vec![flag.into()],
    }
}

fn write_bindings(flags: &[String]) {
    let mut builder = bindgen::Builder::default().header("shim.h").clang_args(flags);
    builder = FUNCTIONS.iter().fold(builder, |builder, name| builder.allowlist_function(name));
    builder = TYPES.iter().fold(builder, |builder, name| builder.allowlist_type(name));
    builder = CONSTANTS.iter().fold(builder, |builder, name| builder.allowlist_var(name));
    builder = OPAQUE.iter().fold(builder, |builder, name| {
        let declaration = format!("#[repr(C)] pub struct {name} {{ _opaque: [u8; 0] }}");
        builder.blocklist_type(name).raw_line(declaration)
    });
    let bindings = builder
        .default_enum_style(bindgen::EnumVariation::Consts)
        .prepend_enum_name(false)
        .derive_default(true)
        .generate_comments(false)
        .layout_tests(true)
        .rust_target(bindgen::RustTarget::default())
        .generate();
    let written = bindings.map(|bindings| bindings.write_to_file(bindings_file()));
    if !matches!(written, Ok(Ok(()))) {
        fail(&format!("no bindings: {written:?}"));
    }
}

fn bindings_file() -> PathBuf {
    Path::new(&env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("bindings.rs")
}

/// Runs this program again for every libclang, until one has written the bindings: which libclang is loaded is decided
/// once per process, by LIBCLANG_PATH.
fn run_bindgen() {
    let this = env::current_exe().expect("a build script knows its own path");
    let mut complaints = String::new();
    for folder in libclang_folders() {
        let mut child = Command::new(&this);
        child.env(CHILD, "1");
        if let Some(folder) = &folder {
            child.env("LIBCLANG_PATH", folder);
        }
        let output = child.output().expect("the build script can start itself");
        if output.status.success() {
            return;
        }
        let text = String::from_utf8_lossy(&output.stderr);
        let reason =
            text.lines().filter(|line| !line.trim().is_empty()).take(5).collect::<Vec<_>>().join("\n    ");
        complaints += &format!("  {folder:?}:\n    {reason}\n");
    }
    fail(&format!(
        "no libclang on this machine can read DPDK's headers. On Debian and Ubuntu: `apt-get install libclang-dev \
         libc6-dev`. If one is installed elsewhere, set LIBCLANG_PATH to its folder. Tried:\n{complaints}"
    ));
}

/// `None` stands for wherever bindgen looks by itself. A set LIBCLANG_PATH is the user's word and the only choice.
fn libclang_folders() -> Vec<Option<PathBuf>> {
    if let Some(folder) = env::var_os("LIBCLANG_PATH") {
        return vec![Some(folder.into())];
    }
    let mut folders = vec![];
    let ask = |program: OsString| Command::new(program).arg("--libdir").output().ok();
    let llvm_config = env::var_os("LLVM_CONFIG_PATH").unwrap_or_else(|| "llvm-config".into());
    if let Some(output) = ask(llvm_config).filter(|output| output.status.success()) {
        folders.push(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    }
    // One folder per release, as Debian and Ubuntu install them; the newest first.
    let mut releases = Path::new("/usr/lib")
        .read_dir()
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            Some((entry.file_name().to_str()?.strip_prefix("llvm-")?.parse().ok()?, entry.path()))
        })
        .collect::<Vec<(u32, PathBuf)>>();
    releases.sort_by_key(|(release, _)| std::cmp::Reverse(*release));
    folders.extend(releases.into_iter().map(|(_, folder)| folder.join("lib")));
    folders.retain(|folder| has_libclang(folder));
    folders.into_iter().map(Some).chain([None]).collect()
}

fn has_libclang(folder: &Path) -> bool {
    let mut entries = folder.read_dir().into_iter().flatten().flatten();
    entries.any(|entry| entry.file_name().to_string_lossy().starts_with("libclang"))
}

fn fail(message: &str) -> ! {
    eprintln!("error: {message}");
    exit(1)
}
