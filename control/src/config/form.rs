//! All errors of form in a file, where serde stops at the first one: what was refused is taken out, and the rest is read
//! again. A YAML text enters, complaints leave. What is no YAML at all has one error: nothing behind it can be read.

use serde_yaml::Value;

use super::error::plain;
use super::types::Config;

/// Errors that are looked for at most; each takes one reading of the file.
const MOST: usize = 20;

/// Octets of the longest file that is read again: some 10,000 tunnels.
const LONGEST: usize = 4 << 20;

/// One step of a path.
enum Step<'a> {
    Key(&'a str),
    Index(usize),
}

/// What is wrong with the form of `text`, in the order in which it was found: path of the mapping or value, the key in it
/// that is not known, the message.
pub(super) fn errors(text: &str) -> Vec<(String, Option<String>, String)> {
    let (mut found, mut taken) = (Vec::new(), Vec::new());
    if text.len() > LONGEST {
        return found;
    }
    let Ok(mut value) = serde_yaml::from_str::<Value>(text) else { return found };
    while found.len() < MOST && taken.len() < 2 * MOST {
        let error = match serde_path_to_error::deserialize::<_, Config>(&value) {
            Ok(_) => break,
            Err(error) => error,
        };
        let message = error.inner().to_string();
        let quoted = |prefix: &str| Some(message.strip_prefix(prefix)?.split('`').nth(1)?.to_owned());
        let (unknown, missing) = (quoted("unknown field "), quoted("missing field "));
        let mut path = match error.path().to_string() {
            root if root == "." => String::new(),
            path => path,
        };
        if let Some(key) = &unknown
            && let Some(parent) = path.strip_suffix(key.as_str())
        {
            path = parent.trim_end_matches('.').to_owned();
        }
        let key_of = |key: &String| if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        // A key that was taken out here is not missing in the file.
        let told = missing.as_ref().is_some_and(|key| taken.contains(&key_of(key)));
        let mut out = unknown.as_ref().map_or_else(|| path.clone(), key_of);
        if taken.contains(&out) {
            // An empty place in a list: the list goes.
            out.truncate(out.rfind(['.', '[']).unwrap_or(0));
        } else if !told {
            found.push((path.clone(), unknown, plain(&message)));
        }
        if out.is_empty() || !take_out(&mut value, &out) {
            break;
        }
        taken.push(out);
    }
    wipe(&mut value);
    found
}

/// Takes a node out; false where there is none.
fn take_out(value: &mut Value, path: &str) -> bool {
    let steps = steps(path);
    let Some((last, parents)) = steps.split_last() else { return false };
    let mut at = value;
    for step in parents {
        let next = match step {
            Step::Key(key) => at.get_mut(key),
            Step::Index(index) => at.get_mut(index),
        };
        let Some(next) = next else { return false };
        at = next;
    }
    let gone = match (last, at) {
        (Step::Key(key), Value::Mapping(mapping)) => mapping.shift_remove(*key),
        // Its place is kept, so that the numbers of the others stay.
        (Step::Index(index), Value::Sequence(list)) => {
            let Some(entry) = list.get_mut(*index) else { return false };
            Some(std::mem::replace(entry, Value::Null))
        }
        _ => None,
    };
    let changed = gone.as_ref().is_some_and(|gone| !gone.is_null());
    gone.into_iter().for_each(|mut gone| wipe(&mut gone));
    changed
}

fn steps(path: &str) -> Vec<Step<'_>> {
    let mut steps = Vec::new();
    for part in path.split('.') {
        let (key, indices) = part.split_once('[').unwrap_or((part, ""));
        if !key.is_empty() {
            steps.push(Step::Key(key));
        }
        let numbers = indices.split(['[', ']']).filter_map(|index| index.parse().ok());
        steps.extend(numbers.map(Step::Index));
    }
    steps
}

/// Keys may stand in the file.
fn wipe(value: &mut Value) {
    match value {
        Value::String(text) => zeroize::Zeroize::zeroize(text),
        Value::Sequence(list) => list.iter_mut().for_each(wipe),
        Value::Mapping(mapping) => mapping.values_mut().for_each(wipe),
        _ => (),
    }
}
