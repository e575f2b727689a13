//! The flow rules that a driver is told, word by word: the shim itself, compiled against a driver that writes them down. No NIC
//! that takes them was at hand; which drivers take which is the table in `dataplane/src/steering.rs`.

use std::path::PathBuf;
use std::process::Command;

/// The program, compiled as `build.rs` compiles the shim. It goes when this goes.
struct Program(PathBuf);

impl Program {
    fn compile(name: &str) -> Program {
        let flags = Command::new("pkg-config").args(["--cflags", "--libs", "libdpdk"]).output().unwrap();
        let flags = String::from_utf8(flags.stdout).unwrap();
        let program = std::env::temp_dir().join(format!("penstock-flow-rules-{}-{name}", std::process::id()));
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/dpdk/rules.c");
        let mut cc = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()));
        cc.args(["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-o"]).arg(&program).arg(source);
        let output = cc.args(flags.split_whitespace()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Program(program)
    }

    fn tells(&self, arguments: &str) -> Vec<String> {
        let output = Command::new(&self.0).args(arguments.split(' ')).output().unwrap();
        String::from_utf8(output.stdout).unwrap().lines().map(String::from).collect()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn rules_say_what_they_should() {
    let program = Program::compile("words");
    assert_eq!(
        program.tells("3"),
        [
            "may: eth ipv4 esp > hash of esp over the table",
            "make: eth ipv4 esp > hash of esp over the table",
            "0 "
        ]
    );
    assert_eq!(program.tells("3 udp any_port")[1], "make: eth ipv4 udp esp > hash of esp over the table");
    assert_eq!(
        program.tells("3 udp list")[1],
        "make: eth ipv4 udp 0000:1194/0000:ffff esp > hash of esp over 0 1 2",
        "1194 is 4500"
    );
    assert_eq!(
        program.tells("2 low_bits"),
        [
            "may: eth ipv4 esp 00000000/00000001 > queue 0",
            "may: eth ipv4 esp 00000001/00000001 > queue 1",
            "make: eth ipv4 esp 00000000/00000001 > queue 0",
            "make: eth ipv4 esp 00000001/00000001 > queue 1",
            "0 "
        ]
    );
    assert_eq!(
        program.tells("64 low_bits udp")[127],
        "make: eth ipv4 udp 0000:1194/0000:ffff esp 0000003f/0000003f > queue 63"
    );
}

#[test]
fn rules_are_made_whole_or_not_at_all() {
    let program = Program::compile("whole");
    let told = program.tells("4 low_bits refuse 3");
    assert_eq!(told[7..], ["destroy 2", "destroy 1", "28 the table is full"], "{told:?}");
    assert_eq!(program.tells("129 low_bits"), ["34 "]);
}
