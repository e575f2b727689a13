//! Where a key stands: the text of the file enters, a map from the path of each key (`tunnels.a.remote_prefixes[0]`)
//! to its line and column leaves. Built only when there is something to complain about.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, Span};

/// A place in the file, line and column from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct Position {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
}

impl From<Span> for Position {
    fn from(span: Span) -> Position {
        Position { line: span.start.line(), column: span.start.col() + 1 }
    }
}

/// Path of every node to its position.
#[derive(Debug, Default)]
pub(super) struct Locations {
    nodes: HashMap<String, Position>,
    duplicates: Vec<(String, Position)>,
}

/// A mapping or sequence that is open while the events pass.
enum Open {
    Mapping { path: String, key: Option<(String, Position)> },
    Sequence { path: String, index: usize },
}

impl Locations {
    /// Walks `text`; where it is not YAML, keeps what was found up to there.
    pub(super) fn of(text: &str) -> Locations {
        let mut locations = Locations::default();
        let mut open = Vec::new();
        let mut parser = Parser::new_from_str(text);
        while let Some(Ok((event, span))) = parser.next_event() {
            locations.enter(&mut open, &event, span.into());
        }
        locations
    }

    /// The position of `path`: of its value where that is a scalar, else of its key. Where the key is not in the file
    /// (a default), that of the nearest parent.
    pub(super) fn find(&self, path: &str) -> Option<Position> {
        let mut path = path;
        loop {
            if let Some(found) = self.nodes.get(path) {
                return Some(*found);
            }
            path = &path[..path.rfind(['.', '['])?];
        }
    }

    /// The second occurrence of the first key that stands twice under `parent`.
    pub(super) fn duplicate(&self, parent: &str) -> Option<Position> {
        self.duplicates.iter().find(|(path, _)| path == parent).map(|(_, position)| *position)
    }

    fn enter(&mut self, open: &mut Vec<Open>, event: &Event<'_>, at: Position) {
        match event {
            Event::MappingEnd | Event::SequenceEnd => {
                open.pop();
            }
            Event::Scalar(text, ..) => {
                if let Some(Open::Mapping { path, key: key @ None }) = open.last_mut() {
                    *key = Some((join(path, text), at));
                } else {
                    self.place(open, at, true);
                }
            }
            Event::Alias(_) => {
                self.place(open, at, true);
            }
            Event::MappingStart(..) => {
                let path = self.place(open, at, false);
                open.push(Open::Mapping { path, key: None });
            }
            Event::SequenceStart(..) => {
                let path = self.place(open, at, false);
                open.push(Open::Sequence { path, index: 0 });
            }
            _ => (),
        }
    }

    /// Notes the node that begins at `at` and returns its path.
    fn place(&mut self, open: &mut [Open], at: Position, scalar: bool) -> String {
        let (path, position) = match open.last_mut() {
            None => (String::new(), at),
            Some(Open::Sequence { path, index }) => {
                let path = format!("{path}[{index}]");
                *index += 1;
                (path, at)
            }
            Some(Open::Mapping { path: parent, key }) => match key.take() {
                Some((path, key_at)) => {
                    if self.nodes.contains_key(&path) {
                        self.duplicates.push((parent.clone(), key_at));
                    }
                    (path, if scalar { at } else { key_at })
                }
                // A mapping as a key: serde has refused it before anyone asks where it stands.
                None => (String::from("?"), at),
            },
        };
        self.nodes.entry(path.clone()).or_insert(position);
        path
    }
}

pub(super) fn join(parent: &str, key: &str) -> String {
    if parent.is_empty() { key.to_string() } else { format!("{parent}.{key}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "name: a\nports:\n  lan:\n    addresses: [10.1.0.1/24,\n      10.1.1.1/24]\nname: b\n";

    fn at(line: usize, column: usize) -> Option<Position> {
        Some(Position { line, column })
    }

    #[test]
    fn finds_scalars_by_value_and_containers_by_key() {
        let locations = Locations::of(TEXT);
        assert_eq!(locations.find("name"), at(1, 7));
        assert_eq!(locations.find("ports.lan"), at(3, 3));
        assert_eq!(locations.find("ports.lan.addresses[1]"), at(5, 7));
    }

    #[test]
    fn a_default_is_found_at_its_parent() {
        let locations = Locations::of(TEXT);
        assert_eq!(locations.find("ports.lan.mtu"), at(3, 3));
        assert_eq!(locations.find("ports.lan.addresses[7]"), at(4, 5));
        assert_eq!(locations.find("nothing"), None);
    }

    #[test]
    fn the_second_of_two_equal_keys_is_the_duplicate() {
        assert_eq!(Locations::of(TEXT).duplicate(""), at(6, 1));
        assert_eq!(Locations::of(TEXT).duplicate("ports"), None);
    }
}
