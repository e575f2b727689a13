//! The process log on standard error: records enter, lines leave, as people, journald (sd-daemon(3)) or machines read them.

use std::io::Write as _;

use clap::ValueEnum;
use env_logger::{Builder, Env};
use log::Level;

/// How the process log is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// `journal` where standard error is the journal (JOURNAL_STREAM), else `text`.
    #[default]
    Auto,
    /// Time, level and message.
    Text,
    /// The priority as <N> and the message: journald has the time.
    Journal,
    /// An object a line: time, level, message.
    Json,
}

impl LogFormat {
    /// What it means here: systemd names device and inode of the journal's stream.
    fn found(self, stream: Option<&str>, standard_error: Option<(u64, u64)>) -> LogFormat {
        let journal = stream.and_then(|stream| {
            let (device, inode) = stream.split_once(':')?;
            Some((device.parse().ok()?, inode.parse().ok()?))
        });
        match self {
            LogFormat::Auto if journal.is_some() && journal == standard_error => LogFormat::Journal,
            LogFormat::Auto => LogFormat::Text,
            other => other,
        }
    }
}

/// Writes the log from now on; RUST_LOG says how much of it.
pub fn begin(format: LogFormat) {
    let mut builder = Builder::from_env(Env::default().default_filter_or("info"));
    builder.format_target(false);
    let stream = std::env::var("JOURNAL_STREAM").ok();
    let standard_error = rustix::fs::fstat(std::io::stderr()).ok().map(|found| (found.st_dev, found.st_ino));
    match format.found(stream.as_deref(), standard_error) {
        LogFormat::Journal => {
            builder.format(|out, record| {
                out.write_all(journal(record.level(), &record.args().to_string()).as_bytes())
            });
        }
        LogFormat::Json => {
            builder.format(|out, record| {
                let time = out.timestamp_micros().to_string();
                writeln!(out, "{}", json(&time, record.level(), &record.args().to_string()))
            });
        }
        LogFormat::Auto | LogFormat::Text => {}
    }
    builder.init();
}

/// Every line with the priority of syslog(3).
fn journal(level: Level, message: &str) -> String {
    let priority = match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    };
    message.lines().map(|line| format!("<{priority}>{line}\n")).collect()
}

fn json(time: &str, level: Level, message: &str) -> serde_json::Value {
    serde_json::json!({ "time": time, "level": level.as_str().to_lowercase(), "message": message })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_journal_is_known_by_its_stream() {
        let own = Some((9, 1234));
        let found = |stream| LogFormat::Auto.found(stream, own);
        assert_eq!(found(Some("9:1234")), LogFormat::Journal);
        // Inherited, and redirected since.
        for other in [None, Some("9:1235"), Some("8:1234"), Some("odd"), Some("")] {
            assert_eq!(found(other), LogFormat::Text, "{other:?}");
        }
        assert_eq!(LogFormat::Auto.found(None, None), LogFormat::Text);
        assert_eq!(LogFormat::Json.found(Some("9:1234"), own), LogFormat::Json);
    }

    #[test]
    fn every_line_has_a_priority_and_every_object_is_one_line() {
        assert_eq!(journal(Level::Warn, "one\ntwo"), "<4>one\n<4>two\n");
        assert_eq!(journal(Level::Error, "x"), "<3>x\n");
        let line = json("2026-01-01T00:00:00Z", Level::Info, "a \"b\"\nc").to_string();
        assert_eq!(line, r#"{"time":"2026-01-01T00:00:00Z","level":"info","message":"a \"b\"\nc"}"#);
    }
}
