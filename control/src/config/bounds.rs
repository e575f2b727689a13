//! What a text may be, seen before a parser takes all of it: a text enters, the place where it is too much leaves. serde_yaml
//! keeps every event of a text before anything can be refused, and its time grows with the square of the depth of `[` and `{`.

use saphyr_parser::{Event, Parser};

use super::locate::Position;

/// Octets of the largest file: 100,000 tunnels with IKEv2, written out at length, take 32 MiB.
pub(super) const MAX_LEN: u64 = 64 << 20;
/// What can separate keys and values; such a file has half of them.
const MAX_SEPARATORS: usize = 6_000_000;
/// Lists and mappings inside each other; the keys that there are need seven.
const MAX_DEPTH: usize = 16;
/// So deep a text is read without a closer look.
const SHALLOW: usize = 128;

/// Where there are too many values, or too many lists inside each other, and what to say.
pub(super) fn exceeded(text: &str) -> Option<(Position, String)> {
    let mut separators = 0;
    let mut depth = 0;
    for (index, line) in text.lines().enumerate() {
        let (found, deepest, opened) = measure(line);
        separators += found;
        if separators > MAX_SEPARATORS {
            let position = Position { line: index + 1, column: 1 };
            let message = format!("more than {MAX_SEPARATORS} keys and values: not a configuration");
            return Some((position, message));
        }
        if depth + deepest > SHALLOW {
            return too_deep(text);
        }
        depth += opened;
    }
    None
}

/// How many separators a line has, and how much deeper at most the text can be within it and behind it. What a line closes
/// does not count: it may stand in quotes that began before.
fn measure(line: &str) -> (usize, usize, usize) {
    let (mut separators, mut opened, mut closed, mut deepest, mut quoted) = (1, 0, 0, 0, false);
    for octet in line.bytes() {
        match octet {
            b'[' | b'{' => {
                opened += 1;
                deepest = deepest.max(opened - closed);
            }
            b']' | b'}' => closed = opened.min(closed + 1),
            b'"' | b'\'' | b'#' => quoted = true,
            b':' | b',' | b'-' | b'?' => {}
            _ => continue,
        }
        separators += 1;
    }
    if quoted { (separators, opened, opened) } else { (separators, deepest, opened - closed) }
}

/// The exact depth, by a parser that gives one event after the other. What it cannot read is not given to another.
fn too_deep(text: &str) -> Option<(Position, String)> {
    let deep = || format!("more than {MAX_DEPTH} lists and mappings inside each other: not a configuration");
    let mut parser = Parser::new_from_str(text);
    let mut depth = 0;
    loop {
        match parser.next_event()? {
            Ok((Event::MappingStart(..) | Event::SequenceStart(..), span)) => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return Some((span.into(), deep()));
                }
            }
            Ok((Event::MappingEnd | Event::SequenceEnd, _)) => depth -= 1,
            Ok(_) => {}
            Err(error) => {
                let at = error.marker();
                let position = Position { line: at.line(), column: at.col() + 1 };
                // It looks ahead, and has a limit of its own.
                let limit = error.info() == "recursion limit exceeded";
                return Some((position, if limit { deep() } else { format!("not YAML: {}", error.info()) }));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> Option<String> {
        exceeded(text).map(|(position, message)| format!("{}:{}: {message}", position.line, position.column))
    }

    #[test]
    fn deep_texts_are_refused_at_once() {
        let deep = "more than 16 lists and mappings inside each other: not a configuration";
        for (open, close) in [("[", "]"), ("{a: ", "}"), ("[{a: ", "}]"), ("[\n", "]\n")] {
            let text = format!("name: x\nports: {}{}\n", open.repeat(100_000), close.repeat(100_000));
            let said = said(&text).expect("refused");
            assert!(said.ends_with(deep) || said.contains("not YAML: "), "{said}");
        }
        // What closes in quotes or in a comment closes nothing.
        for decoy in ["[\"]\", ", "[']', ", "[ # ]\n ", "[\"\n ]\n \", "] {
            let said = said(&format!("ports: {}\n", decoy.repeat(1000))).expect("refused");
            assert!(said.ends_with(deep), "{decoy}: {said}");
        }
        assert_eq!(said(&format!("ports: {}", "[".repeat(20))), None, "left to the parser");
    }

    #[test]
    fn many_values_are_refused() {
        let said = said(&"- {to: 10.0.0.0/8, via: 192.0.2.1}\n".repeat(1_500_000)).expect("refused");
        assert!(said.ends_with("more than 6000000 keys and values: not a configuration"), "{said}");
    }

    #[test]
    fn ordinary_texts_pass() {
        for line in
            ["  a: [1, 2, {b: c}]\n", "  a: [\"b[\", 'c]'] # [d\n", "  a: [b,\n    c]\n", "  a: it's [b\n"]
        {
            assert_eq!(said(&line.repeat(1000)), None, "{line}");
        }
    }
}
