//! The command line: arguments enter, a command leaves. Completions and the manual page come from the same types.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::api::types::Select;
use crate::config::scalar::Prefix;
use crate::process_log::LogFormat;

/// Site-to-site IPsec gateway.
///
/// One YAML file configures both of its processes; docs/configuration.md lists every key.
#[derive(Debug, Parser)]
#[command(name = "penstock", version, arg_required_else_help = true)]
pub struct Cli {
    /// Configuration file.
    #[arg(long, short, global = true, default_value = "/etc/penstock/penstock.yaml", value_name = "FILE")]
    pub config: PathBuf,
    /// Name of the gateway, in place of the file's: which one a command talks to, or is started.
    #[arg(long, short, global = true, value_name = "NAME")]
    pub name: Option<String>,
    /// Write JSON instead of words.
    #[arg(long, global = true)]
    pub json: bool,
    /// How `up` and `control` write their log to standard error; RUST_LOG says how much of it.
    #[arg(long, global = true, value_name = "FORMAT", default_value = "auto")]
    pub log_format: LogFormat,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the gateway in the foreground: control and data plane, until Ctrl-C.
    Up,
    /// Run the control process alone, beside a data plane that something else starts.
    Control,
    /// Check a configuration file and say with line and column what is wrong with it.
    Check {
        /// The file; without it, that of --config.
        file: Option<PathBuf>,
    },
    /// Have the running gateway read its configuration again; tunnels that did not change lose nothing.
    Apply,
    /// Say how the running gateway is.
    Status {
        /// One line, and exit code 1 where a tunnel is down or the data plane does not run, 2 where no gateway answers.
        #[arg(long)]
        check: bool,
    },
    /// List something of the running gateway.
    Show {
        /// What to list.
        #[command(subcommand)]
        what: Show,
    },
    /// Show rates of the running gateway until Ctrl-C.
    Top {
        /// Seconds between two readings.
        #[arg(long, short, default_value_t = 1.0, value_name = "SECONDS", value_parser = seconds)]
        interval: f64,
        /// Readings until it ends; without it, it goes on.
        #[arg(long, short = 'r', value_name = "COUNT")]
        readings: Option<u64>,
    },
    /// Replace the keys of a tunnel: negotiate new ones, or step its lab keys to their next generation.
    Rekey {
        /// Name of the tunnel.
        #[arg(required_unless_present = "all")]
        tunnel: Option<String>,
        /// Every tunnel with a lab secret.
        #[arg(long, conflicts_with_all = ["tunnel", "generation", "ike"])]
        all: bool,
        /// The keys of the IKE SA instead of the tunnel's own.
        #[arg(long, conflicts_with_all = ["generation", "force"])]
        ike: bool,
        /// With lab keys, the generation to step to, where it should not be the next.
        #[arg(long, short)]
        generation: Option<u32>,
        /// With lab keys, step although the peer may not have followed the last step.
        #[arg(long)]
        force: bool,
    },
    /// Have IKEv2 set a tunnel up.
    Initiate {
        /// Name of the tunnel.
        tunnel: String,
    },
    /// Have IKEv2 take a tunnel down; it stays down until it is initiated, or has a packet where it starts on traffic.
    Terminate {
        /// Name of the tunnel.
        tunnel: String,
        /// The IKE SA too, with all tunnels that share it.
        #[arg(long)]
        ike: bool,
    },
    /// Say in one or two lines why packets do not pass through a tunnel.
    Why {
        /// Name of the tunnel.
        tunnel: String,
        /// One line, and exit code 1 where the tunnel is down, 2 where no gateway answers or knows it.
        #[arg(long)]
        check: bool,
    },
    /// List the last events of the gateway, or of one tunnel; those before a restart too.
    Log {
        /// Name of the tunnel.
        tunnel: Option<String>,
        /// At most so many, the last ones.
        #[arg(long, value_name = "LINES")]
        lines: Option<usize>,
    },
    /// Write the completions for a shell to standard output.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Write the manual page to standard output.
    Man,
}

/// What to list.
#[derive(Clone, Debug, Subcommand)]
pub enum Show {
    /// Security associations.
    Sa {
        /// Only those of this tunnel.
        tunnel: Option<String>,
        /// Which.
        #[command(flatten)]
        which: Which,
    },
    /// Tunnels.
    Tunnels {
        /// Which.
        #[command(flatten)]
        which: Which,
    },
    /// IKE SAs.
    Ike {
        /// Only that of this tunnel.
        tunnel: Option<String>,
    },
    /// Routes of the data plane.
    Routes {
        /// Which.
        #[command(flatten)]
        which: Which,
    },
    /// Why frames were dropped.
    Drops {
        /// Reasons that never occurred too.
        #[arg(long, short)]
        all: bool,
    },
    /// Ports.
    Ports,
    /// Workers: since they started, or during an interval.
    Workers {
        /// Seconds of the interval.
        #[arg(long, short, value_name = "SECONDS", value_parser = seconds)]
        interval: Option<f64>,
    },
}

/// Which rows of a long list.
#[derive(Clone, Debug, Default, Args)]
pub struct Which {
    /// Only where the tunnel's name (of a route: its target) holds this text.
    #[arg(long = "match", value_name = "TEXT")]
    pub matching: Option<String>,
    /// Only of tunnels to this peer.
    #[arg(long, value_name = "ADDRESS")]
    pub peer: Option<Ipv4Addr>,
    /// Only where a prefix overlaps this one.
    #[arg(long, value_name = "PREFIX")]
    pub prefix: Option<Prefix>,
    /// At most so many rows; how to go on is said where there are more.
    #[arg(long, value_name = "ROWS", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,
    /// Only behind this row.
    #[arg(long, value_name = "ROW")]
    pub after: Option<String>,
}

impl From<&Which> for Select {
    fn from(which: &Which) -> Select {
        let Which { matching, peer, prefix, limit, after } = which.clone();
        Select { matching, peer, prefix, after, limit: limit.map(|limit| limit as usize) }
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.1..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("expected seconds from 0.1 to 3600".into()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
        let cli = Cli::parse_from(["penstock", "show", "sa", "a", "--json", "--name", "x"]);
        assert!(cli.json && cli.name.as_deref() == Some("x"));
        assert!(Cli::try_parse_from(["penstock", "top", "--interval", "0"]).is_err());
    }
}
