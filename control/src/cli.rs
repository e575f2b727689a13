//! The command line: arguments enter, a command leaves. Completions and the manual page come from the same types.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// Site-to-site IPsec gateway.
///
/// One YAML file configures both of its processes; docs/configuration.md lists every key.
#[derive(Debug, Parser)]
#[command(name = "penstock", version, arg_required_else_help = true)]
pub struct Cli {
    /// Configuration file.
    #[arg(long, short, global = true, default_value = "/etc/penstock/penstock.yaml", value_name = "FILE")]
    pub config: PathBuf,
    /// Write JSON instead of words.
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Check a configuration file and say with line and column what is wrong with it.
    Check {
        /// The file; without it, that of --config.
        file: Option<PathBuf>,
    },
    /// Write the completions for a shell to standard output.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Write the manual page to standard output.
    Man,
}
