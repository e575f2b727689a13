//! Long lists in parts: which rows are wanted enters, a page and where the next one begins leaves.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::types::{Answer, Request};
use crate::config::scalar::Prefix;

/// Most rows of one answer: a client asks on from [`Page::next`]. So no client keeps the gateway from its work for long.
pub const MAX_ROWS: usize = 1000;

/// Which rows of a long list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Select {
    /// Only where the tunnel's name (of a route: its target) holds this text.
    pub matching: Option<String>,
    /// Only of tunnels to this peer.
    pub peer: Option<Ipv4Addr>,
    /// Only where a prefix overlaps this one.
    pub prefix: Option<Prefix>,
    /// Only behind this row: [`Page::next`] of the answer before, or a row's own name or destination.
    pub after: Option<String>,
    /// At most so many rows, and at most [`MAX_ROWS`].
    pub limit: Option<usize>,
}

/// A part of a long list.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Page<T> {
    /// The rows.
    pub rows: Vec<T>,
    /// Where the next part begins ([`Select::after`]); none where this was the last.
    pub next: Option<String>,
}

impl<T> Page<T> {
    /// The first `limit` of `rows`, each with what [`Select::after`] calls it.
    pub fn of(mut rows: impl Iterator<Item = (String, T)>, limit: Option<usize>) -> Page<T> {
        let limit = limit.unwrap_or(MAX_ROWS).clamp(1, MAX_ROWS);
        let mut last = None;
        let page = rows.by_ref().take(limit).map(|(name, row)| {
            last = Some(name);
            row
        });
        let page = page.collect();
        Page { rows: page, next: last.filter(|_| rows.next().is_some()) }
    }

    fn append(&mut self, other: Page<T>) {
        self.rows.extend(other.rows);
        self.next = other.next;
    }
}

impl Request {
    /// What asks for the part behind `answer`, as long as there is one and fewer rows came than are wanted.
    pub fn following(&self, answer: &Answer) -> Option<Request> {
        let (after, got) = answer.next()?;
        let mut request = self.clone();
        match &mut request {
            Request::Tunnels { select } | Request::Sas { select, .. } | Request::Routes { select } => {
                select.limit = match select.limit {
                    Some(limit) if limit <= got => return None,
                    limit => limit.map(|limit| limit - got),
                };
                select.after = Some(after.into());
            }
            _ => return None,
        }
        Some(request)
    }
}

impl Answer {
    /// Where the next part of a list begins, and how many rows are here.
    pub fn next(&self) -> Option<(&str, usize)> {
        let (next, rows) = match self {
            Answer::Tunnels(page) => (&page.next, page.rows.len()),
            Answer::Sas(page) => (&page.next, page.rows.len()),
            Answer::Routes(page) => (&page.next, page.rows.len()),
            _ => return None,
        };
        next.as_deref().map(|next| (next, rows))
    }

    /// Adds the next part of the same list.
    pub fn append(&mut self, other: Answer) {
        match (self, other) {
            (Answer::Tunnels(page), Answer::Tunnels(other)) => page.append(other),
            (Answer::Sas(page), Answer::Sas(other)) => page.append(other),
            (Answer::Routes(page), Answer::Routes(other)) => page.append(other),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::RouteStatus;

    fn rows(names: std::ops::Range<u32>, limit: Option<usize>) -> Page<u32> {
        Page::of(names.map(|name| (name.to_string(), name)), limit)
    }

    #[test]
    fn a_long_list_comes_in_parts() {
        let page = rows(0..2500, None);
        assert_eq!((page.rows.len(), page.next.as_deref()), (MAX_ROWS, Some("999")));
        let page = rows(0..1000, None);
        assert_eq!((page.rows.len(), page.next), (MAX_ROWS, None));
        let page = rows(0..9, Some(2));
        assert_eq!((page.rows, page.next.as_deref()), (vec![0, 1], Some("1")));
        assert_eq!(rows(0..0, Some(5)).next, None);
    }

    #[test]
    fn a_client_asks_on_until_it_has_what_it_wants() {
        let route = |number: u32| RouteStatus { prefix: number.to_string(), target: "discard".into() };
        let answer = |count: u32, next: Option<&str>| {
            Answer::Routes(Page { rows: (0..count).map(route).collect(), next: next.map(String::from) })
        };
        let asked = |limit| Request::Routes { select: Select { limit, ..Select::default() } };
        assert_eq!(asked(None).following(&answer(1000, None)), None);
        assert_eq!(asked(Some(1000)).following(&answer(1000, Some("x"))), None);
        let Some(Request::Routes { select }) = asked(Some(1500)).following(&answer(1000, Some("x"))) else {
            panic!("there is more")
        };
        assert_eq!((select.limit, select.after.as_deref()), (Some(500), Some("x")));
        let mut all = answer(2, Some("x"));
        all.append(answer(3, None));
        assert_eq!((all.next(), matches!(&all, Answer::Routes(page) if page.rows.len() == 5)), (None, true));
    }
}
