//! Holds the rules of the tree, so that no reviewer has to: where `unsafe` may stand and how it is explained, what the
//! hot path may not call, how long a file and a function may be, what stands at the top level.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Files and folders that may hold `unsafe`: the FFI, its wrappers, the CPU's instructions, the mapped region.
const UNSAFE: &[&str] = &[
    "dpdk-sys/src/lib.rs",
    "dataplane/src/dpdk/",
    "dataplane/src/crypto/aesni.rs",
    "dataplane/src/crypto/vaes/",
    "dataplane/tables/src/segment.rs",
    "dataplane/tables/src/layout.rs",
    "dataplane/tables/tests/loom.rs",
    "dataplane/testpmd/src/huge.rs",
    "tests/crypto_bursts.rs",
    "tests/path_loop.rs",
    "benches/crypto.rs",
    "benches/crypto/",
];

/// Where packets are worked on, once the data plane runs.
const HOT: &[&str] = &["dataplane/src/path/", "dataplane/src/path.rs", "dataplane/src/worker.rs"];

/// Allocation, locks, text and panics: nothing of it on the hot path.
const NOT_HOT: &[&str] = &[
    ".unwrap()",
    ".expect(",
    "panic!",
    "unreachable!",
    "println!",
    "print!",
    "format!",
    "vec!",
    "Box::new",
    ".to_vec()",
    ".to_string()",
    ".to_owned()",
    "Mutex",
    "RwLock",
];

const TOP_LEVEL: &[&str] = &[
    ".ci",
    ".gitignore",
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
    "benches",
    "build.rs",
    "control",
    "dataplane",
    "docs",
    "dpdk-sys",
    "fuzz",
    "rustfmt.toml",
    "scripts",
    "tests",
];

/// Written by machines, or not by us, or not kept.
const SKIPPED: &[&str] = &[".git", "target", "fuzz/target", "fuzz/corpus", "fuzz/artifacts", "fuzz/coverage"];

const FILE_LINES: usize = 650;
const FUNCTION_LINES: usize = 70;
const RUN_LINES: usize = 60;

struct File {
    /// From the root of the tree.
    name: String,
    text: String,
}

impl File {
    fn is_any_of(&self, places: &[&str]) -> bool {
        places.iter().any(|place| self.name == *place || place.ends_with('/') && self.name.starts_with(place))
    }

    fn has_extension(&self, extensions: &[&str]) -> bool {
        extensions.iter().any(|extension| self.name.ends_with(&format!(".{extension}")))
    }
}

/// All text files of the tree.
fn files() -> Vec<File> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut files, mut folders) = (vec![], vec![root.to_path_buf()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap()) {
            let path: PathBuf = entry.path();
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            if SKIPPED.contains(&name.as_str()) || entry.file_type().unwrap().is_symlink() {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else if let Ok(text) = fs::read_to_string(&path) {
                files.push(File { name, text });
            }
        }
    }
    assert!(files.len() > 50, "only {} files were found under {}", files.len(), root.display());
    files
}

fn rust_files() -> Vec<File> {
    files().into_iter().filter(|file| file.has_extension(&["rs"])).collect()
}

/// Fails with all complaints at once.
fn report(complaints: Vec<String>) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

/// The text with comments, strings and characters blanked out, line for line.
fn code_of(text: &str) -> String {
    let octets = text.as_bytes();
    let mut code = octets.to_vec();
    let mut at = 0;
    while at < octets.len() {
        let len = opaque_len(&octets[at..]);
        code[at..at + len].iter_mut().filter(|octet| **octet != b'\n').for_each(|octet| *octet = b' ');
        at += len.max(1);
    }
    String::from_utf8(code).unwrap()
}

/// Octets of the comment, string or character that begins here; 0 where none does.
fn opaque_len(rest: &[u8]) -> usize {
    let until = |from: usize, end: &[u8]| {
        let found = rest[from..].windows(end.len()).position(|window| window == end);
        found.map_or(rest.len(), |at| from + at + end.len())
    };
    match rest {
        [b'/', b'/', ..] => until(0, b"\n") - 1,
        [b'/', b'*', ..] => until(2, b"*/"),
        [b'r', b'"', ..] => until(2, b"\""),
        [b'r', b'#', b'"', ..] => until(3, b"\"#"),
        [b'"', ..] => {
            let mut at = 1;
            while at < rest.len() && rest[at] != b'"' {
                at += 1 + usize::from(rest[at] == b'\\');
            }
            (at + 1).min(rest.len())
        }
        [b'\'', b'\\', _, ..] => until(3, b"'"),
        [b'\'', _, b'\'', ..] => 3,
        _ => 0,
    }
}

/// The part of the code before the unit tests, which stand at the bottom.
fn without_tests(code: &str) -> &str {
    code.find("#[cfg(test)]\nmod ").map_or(code, |tests| &code[..tests])
}

/// Where `word` stands in the code by itself.
fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let is_part =
        |octet: Option<&u8>| octet.is_some_and(|octet| octet.is_ascii_alphanumeric() || *octet == b'_');
    code.match_indices(word).map(|(at, _)| at).filter(move |&at| {
        let octets = code.as_bytes();
        !is_part(octets[..at].last()) && !is_part(octets.get(at + word.len()))
    })
}

fn line_of(code: &str, at: usize) -> usize {
    code[..at].matches('\n').count() + 1
}

/// Name and lines of every function with a body.
fn functions(code: &str) -> Vec<(String, Range<usize>)> {
    let function = |at: usize| {
        let name = code[at + 2..].trim_start().split(|c: char| !c.is_alphanumeric() && c != '_').next()?;
        let open = at + code[at..].find(['{', ';'])?;
        if name.is_empty() || code.as_bytes()[open] == b';' {
            return None;
        }
        let mut depth = 0;
        let close = code[open..].char_indices().find_map(|(offset, c)| {
            depth += i32::from(c == '{') - i32::from(c == '}');
            (depth == 0).then_some(open + offset)
        })?;
        Some((name.to_owned(), line_of(code, at)..line_of(code, close) + 1))
    };
    words(code, "fn").filter_map(function).collect()
}

#[test]
fn unsafe_stands_only_where_it_may() {
    let mut complaints = vec![];
    for file in rust_files().iter().filter(|file| !file.is_any_of(UNSAFE)) {
        let code = code_of(&file.text);
        for word in ["unsafe", "allow(unsafe_code)"] {
            for at in words(&code, word) {
                complaints.push(format!("{}:{}: {word} in this file", file.name, line_of(&code, at)));
            }
        }
    }
    report(complaints);
}

#[test]
fn every_unsafe_is_explained() {
    let mut complaints = vec![];
    for file in rust_files() {
        let code = code_of(&file.text);
        let lines: Vec<&str> = file.text.lines().map(str::trim_start).collect();
        for at in words(&code, "unsafe") {
            let next = code[at + "unsafe".len()..].trim_start();
            if !next.starts_with('{') && !next.starts_with("impl") {
                continue;
            }
            let line = line_of(&code, at);
            // A comment of any length, with at most three lines of code between.
            let above = || lines[..line - 1].iter().rev();
            let between = above().take_while(|text| !text.starts_with("//")).count();
            let mut comment = above().skip(between).take_while(|text| text.starts_with("//"));
            if between > 3 || !comment.any(|text| text.contains("SAFETY:")) {
                complaints.push(format!("{}:{line}: no `// SAFETY:` within three lines above", file.name));
            }
        }
    }
    report(complaints);
}

#[test]
fn files_are_one_thing_and_say_which() {
    let mut complaints = vec![];
    for file in files() {
        let lines = file.text.lines().count();
        if file.has_extension(&["rs", "c", "h"]) && lines > FILE_LINES {
            complaints
                .push(format!("{}: {lines} lines, at most {FILE_LINES}: this is two things", file.name));
        }
        if file.has_extension(&["rs"]) && !file.text.starts_with("//! ") {
            complaints.push(format!("{}:1: does not begin with what it is (`//! `)", file.name));
        }
    }
    report(complaints);
}

#[test]
fn the_hot_path_neither_allocates_nor_locks_nor_panics() {
    let mut complaints = vec![];
    for file in rust_files().iter().filter(|file| file.is_any_of(HOT)) {
        let code = code_of(&file.text);
        for word in NOT_HOT {
            for (at, _) in without_tests(&code).match_indices(word) {
                complaints.push(format!("{}:{}: {word} on the hot path", file.name, line_of(&code, at)));
            }
        }
    }
    report(complaints);
}

#[test]
fn functions_of_the_path_fit_on_a_screen() {
    let mut complaints = vec![];
    for file in
        rust_files().iter().filter(|file| file.is_any_of(&["dataplane/src/path/", "dataplane/src/path.rs"]))
    {
        let code = code_of(&file.text);
        for (name, lines) in functions(without_tests(&code)) {
            let most = if name == "run" { RUN_LINES } else { FUNCTION_LINES };
            if lines.len() > most {
                let len = lines.len();
                complaints
                    .push(format!("{}:{}: {name} has {len} lines, at most {most}", file.name, lines.start));
            }
        }
    }
    report(complaints);
}

#[test]
fn the_top_level_is_fixed() {
    let is_allowed = |name: &&str| TOP_LEVEL.contains(name) || SKIPPED.contains(name);
    let root = fs::read_dir(env!("CARGO_MANIFEST_DIR")).unwrap();
    let names: Vec<String> = root.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    let strangers = names.iter().map(String::as_str).filter(|name| !is_allowed(name));
    report(strangers.map(|name| format!("{name}: does not belong at the top level")).collect());
}

#[test]
fn nothing_is_left_to_do_and_no_machine_is_named() {
    // Split, so that this file does not name them either.
    let needles = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("XX", "X:"),
        concat!("todo", "!("),
        concat!("unimplemented", "!("),
        concat!("arti", "factory"),
        concat!("index.", "crates.io"),
        concat!("static.", "crates.io"),
        concat!("deb.", "debian.org"),
        concat!("pypi.", "org"),
        concat!("pythonhosted", ".org"),
        concat!("registry.", "npmjs.org"),
        concat!("proxy.", "golang.org"),
        concat!("/work", "/"),
        concat!("/ro", "ot/"),
    ];
    let mut complaints = vec![];
    for file in files() {
        for (number, line) in (1..).zip(file.text.lines()) {
            for needle in needles.iter().filter(|needle| line.contains(**needle)) {
                complaints.push(format!("{}:{number}: {needle}", file.name));
            }
        }
    }
    report(complaints);
}

#[test]
fn the_rules_see_what_they_look_for() {
    let text = "fn a() { \"unsafe \\\" { \"; // unsafe\n let c = ['\"', '\\'', 'x']; unsafe { b::<'static>() } }\nfn c();\n";
    let code = code_of(text);
    assert_eq!(words(&code, "unsafe").map(|at| line_of(&code, at)).collect::<Vec<_>>(), [2]);
    assert_eq!(functions(&code), [("a".to_owned(), 1..3)]);
    assert_eq!(words("unsafe_code not_unsafe", "unsafe").count(), 0);
    let tested = "fn a() {}\n#[cfg(test)]\nmod tests { fn b() { panic!() } }";
    assert_eq!(functions(without_tests(tested)).len(), 1);
    assert_eq!(code_of("/* { */ r#\"{\"# r\"{\" b"), format!("{:20}b", ""));
}
