//! The configuration reference: the types' schema enters, `docs/configuration.md` leaves. So a key cannot exist without
//! its entry, nor an entry without its key.

use std::fmt::Write as _;

use serde_json::Value;

use super::types::Config;

const HEAD: &str = "# Configuration reference

One YAML file configures a gateway, by default `/etc/penstock/penstock.yaml`. `penstock check FILE` says with line and
column what is wrong with it. Unknown keys are refused. Addresses are IPv4: this release does not carry IPv6 yet.
[ikev2.md](ikev2.md) has whole examples of tunnels whose keys are negotiated, with both ends.

This page is generated from the configuration's types: `cargo test -p penstock-control` fails where it differs, and
`UPDATE_DOCS=1 cargo test -p penstock-control` writes it anew.

A whole file:

```yaml
";

/// A file that has the most common keys; a test checks that it is one without fault.
pub const EXAMPLE: &str = include_str!("example.yaml");

/// The JSON schema of the file.
pub fn schema() -> Value {
    schemars::schema_for!(Config).to_value()
}

/// The text of `docs/configuration.md`.
pub fn markdown() -> String {
    let root = schema();
    let mut out = format!("{HEAD}{EXAMPLE}```\n");
    let mut sections = Vec::new();
    section(&mut out, &root, "The file", &root, &mut sections);
    let mut next = 0;
    while let Some((title, node)) = sections.get(next).cloned() {
        section(&mut out, &root, &format!("`{title}`"), &node, &mut sections);
        next += 1;
    }
    out
}

/// Writes the table of one mapping and notes the mappings below it.
fn section(out: &mut String, root: &Value, title: &str, node: &Value, sections: &mut Vec<(String, Value)>) {
    let _ = write!(out, "\n## {title}\n\n{}\n\n", text(node, "description"));
    out.push_str("| Key | Value | Unit | Default | Meaning |\n|---|---|---|---|---|\n");
    let required: Vec<&str> =
        node["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let path = title.trim_matches('`');
    let prefix = if path == "The file" { String::new() } else { format!("{path}.") };
    let Some(properties) = node["properties"].as_object() else { return };
    for (key, property) in properties {
        let target = resolve(root, property);
        let default = match &property["default"] {
            _ if !text(property, "x-default").is_empty() => text(property, "x-default"),
            _ if required.contains(&key.as_str()) => "required".to_string(),
            Value::Null => "none".into(),
            Value::Array(list) if list.is_empty() => "empty".into(),
            Value::Object(map) if map.is_empty() => "empty".into(),
            Value::Object(_) => "see below".into(),
            Value::String(word) => format!("`{word}`"),
            other => format!("`{other}`"),
        };
        let below = below(root, &target);
        let value = match &below {
            Some((form, node)) => {
                let below = format!("{prefix}{key}{form}");
                sections.push((below.clone(), node.clone()));
                format!("keys below `{below}`")
            }
            None => form(root, &target),
        };
        let unit = if text(property, "x-unit").is_empty() {
            text(&target, "x-unit")
        } else {
            text(property, "x-unit")
        };
        let meaning = text(property, "description");
        let _ = writeln!(out, "| `{key}` | {value} | {unit} | {default} | {meaning} |");
    }
}

/// The mapping that a property leads to, and how its elements are addressed.
fn below(root: &Value, target: &Value) -> Option<(&'static str, Value)> {
    if target["properties"].is_object() {
        return Some(("", target.clone()));
    }
    for (key, form) in [("items", "[]"), ("additionalProperties", ".NAME")] {
        let inner = resolve(root, &target[key]);
        if inner["properties"].is_object() {
            return Some((form, inner));
        }
    }
    None
}

/// The words for the form of a value.
fn form(root: &Value, target: &Value) -> String {
    let words: Vec<&str> = target["oneOf"]
        .as_array()
        .into_iter()
        .flatten()
        .chain([target])
        .flat_map(|one| one["enum"].as_array().into_iter().flatten().chain([&one["const"]]))
        .filter_map(Value::as_str)
        .collect();
    if !words.is_empty() {
        return words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ");
    }
    if let Some(form) = target["x-form"].as_str() {
        return form.into();
    }
    let kind = match &target["type"] {
        Value::Array(kinds) => kinds.first().and_then(Value::as_str).unwrap_or_default(),
        other => other.as_str().unwrap_or_default(),
    };
    match kind {
        "boolean" => "`true`, `false`".into(),
        "integer" => "number".into(),
        "string" => "text".into(),
        "array" => format!("list of: {}", form(root, &resolve(root, &target["items"]))),
        other => other.into(),
    }
}

/// Follows references and the `anyOf` of an optional value.
fn resolve(root: &Value, node: &Value) -> Value {
    if let Some(name) = node["$ref"].as_str().and_then(|path| path.strip_prefix("#/$defs/")) {
        return root["$defs"][name].clone();
    }
    match node["anyOf"].as_array().and_then(|any| any.iter().find(|one| one["type"] != "null")) {
        Some(inner) => resolve(root, inner),
        None => node.clone(),
    }
}

/// The text under `key` on one line.
fn text(node: &Value, key: &str) -> String {
    node[key].as_str().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
}
