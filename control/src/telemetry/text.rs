//! Metrics as text: series and samples enter, one of the two formats that Prometheus reads leaves. OpenMetrics calls a
//! counter's family by its name without `_total`; the older text format, which `promtool` checks, by its whole name.

use std::io::{self, Write};

use super::series::{Kind, Series};

/// Which format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Prometheus' text format 0.0.4.
    Text,
}

impl Format {
    /// What a scraper asks for in its request's head (RFC 9110 section 12.5.1). One that names OpenMetrics prefers it.
    pub fn wanted_by(head: &[u8]) -> Format {
        let head = String::from_utf8_lossy(head).to_ascii_lowercase();
        let mut accepted = head.lines().filter_map(|line| line.strip_prefix("accept:"));
        match accepted.any(|types| types.contains("application/openmetrics-text")) {
            true => Format::OpenMetrics,
            false => Format::Text,
        }
    }

    /// The value of `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Format::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// Writes series one after the other.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    format: Format,
}

impl<W: Write> Writer<W> {
    /// Begins.
    pub fn new(out: W, format: Format) -> Writer<W> {
        Writer { out, format }
    }

    /// Writes a series: the values of its labels, in their order, and the value of each sample.
    ///
    /// # Errors
    /// Where nobody reads any more.
    pub fn family<L: AsRef<str>, const LABELS: usize>(
        &mut self,
        series: &Series,
        samples: impl IntoIterator<Item = ([L; LABELS], u64)>,
    ) -> io::Result<()> {
        debug_assert_eq!(series.labels.len(), LABELS, "{}", series.name);
        let family = match (self.format, series.kind) {
            (Format::OpenMetrics, Kind::Counter) => series.name.trim_end_matches("_total"),
            _ => series.name,
        };
        writeln!(self.out, "# HELP {family} {}", series.help)?;
        writeln!(self.out, "# TYPE {family} {}", series.kind.word())?;
        for (values, value) in samples {
            self.out.write_all(series.name.as_bytes())?;
            for (at, (label, text)) in series.labels.iter().zip(&values).enumerate() {
                write!(self.out, "{}{label}=\"", if at == 0 { '{' } else { ',' })?;
                self.escaped(text.as_ref())?;
                self.out.write_all(b"\"")?;
            }
            writeln!(self.out, "{}{value}", if LABELS == 0 { " " } else { "} " })?;
        }
        Ok(())
    }

    /// Writes a series of one sample without labels.
    ///
    /// # Errors
    /// Where nobody reads any more.
    pub fn single(&mut self, series: &Series, value: u64) -> io::Result<()> {
        self.family(series, [([""; 0], value)])
    }

    /// Ends.
    ///
    /// # Errors
    /// Where nobody reads any more.
    pub fn finish(mut self) -> io::Result<()> {
        if self.format == Format::OpenMetrics {
            self.out.write_all(b"# EOF\n")?;
        }
        self.out.flush()
    }

    fn escaped(&mut self, text: &str) -> io::Result<()> {
        let mut rest = text;
        while let Some(at) = rest.find(['\\', '"', '\n']) {
            self.out.write_all(&rest.as_bytes()[..at])?;
            let word: &[u8] = match rest.as_bytes()[at] {
                b'\n' => b"\\n",
                b'"' => b"\\\"",
                _ => b"\\\\",
            };
            self.out.write_all(word)?;
            rest = &rest[at + 1..];
        }
        self.out.write_all(rest.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::super::series::{FRAMES_RECEIVED, ROUTES};
    use super::*;

    fn text(format: Format) -> String {
        let mut out = Vec::new();
        let mut writer = Writer::new(&mut out, format);
        writer.single(&ROUTES, 3).expect("memory");
        writer.family(&FRAMES_RECEIVED, [(["a\"b\\c\nd"], u64::MAX)]).expect("memory");
        writer.finish().expect("memory");
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn both_formats_have_help_for_what_they_list() {
        let sample = "penstock_frames_received_total{worker=\"a\\\"b\\\\c\\nd\"} 18446744073709551615\n";
        let rest = "# HELP penstock_routes Routes in the data plane\n# TYPE penstock_routes gauge\npenstock_routes 3\n";
        let help = "Frames taken from ports and twins";
        assert_eq!(
            text(Format::Text),
            format!(
                "{rest}# HELP penstock_frames_received_total {help}\n# TYPE penstock_frames_received_total counter\n{sample}"
            )
        );
        assert_eq!(
            text(Format::OpenMetrics),
            format!(
                "{rest}# HELP penstock_frames_received {help}\n# TYPE penstock_frames_received counter\n{sample}# EOF\n"
            )
        );
    }

    #[test]
    fn a_scraper_gets_the_format_that_it_asks_for() {
        let head = |accept: &str| format!("GET /metrics HTTP/1.1\r\nHost: x\r\n{accept}\r\n").into_bytes();
        assert_eq!(Format::wanted_by(&head("")), Format::Text);
        assert_eq!(Format::wanted_by(&head("Accept: */*\r\n")), Format::Text);
        assert_eq!(
            Format::wanted_by(&head(
                "ACCEPT: application/openmetrics-text;version=1.0.0;q=0.6,*/*;q=0.1\r\n"
            )),
            Format::OpenMetrics
        );
    }
}
