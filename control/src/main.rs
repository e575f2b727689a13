//! The `penstock` command: arguments enter, output and an exit code leave (0 done, 1 refused, 2 wrong arguments).

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use penstock_control::cli::{Cli, Command};
use penstock_control::config::{Config, ConfigError, Machine};
use serde_json::json;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match &cli.command {
        Command::Check { file } => check(file.as_deref().unwrap_or(&cli.config), cli.json),
        Command::Completions { shell } => completions(*shell),
        Command::Man => man(),
    };
    match done {
        Ok(code) => code,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("penstock: {error}");
            ExitCode::FAILURE
        }
    }
}

fn check(file: &Path, json: bool) -> io::Result<ExitCode> {
    let result = Config::load(file, &Machine::this());
    let code = if result.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    if json {
        let complaints = match &result {
            Ok(_) => Vec::new(),
            Err(ConfigError { complaints, .. }) => complaints.iter().map(|one| json!(one)).collect(),
        };
        let warnings = result.as_ref().map_or(&[][..], |checked| &checked.warnings);
        let answer =
            json!({ "file": file, "good": result.is_ok(), "complaints": complaints, "warnings": warnings });
        writeln!(io::stdout(), "{answer:#}")?;
        return Ok(code);
    }
    match result {
        Ok(checked) => {
            for warning in &checked.warnings {
                eprintln!("{}: warning: {warning}", file.display());
            }
            let (ports, tunnels) = (checked.config.ports.len(), checked.config.tunnels.len());
            writeln!(io::stdout(), "{}: good: {ports} ports, {tunnels} tunnels", file.display())?;
        }
        Err(error) => eprintln!("{error}"),
    }
    Ok(code)
}

fn completions(shell: clap_complete::Shell) -> io::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "penstock", &mut script);
    io::stdout().write_all(&script)?;
    Ok(ExitCode::SUCCESS)
}

fn man() -> io::Result<ExitCode> {
    let mut page = Vec::new();
    clap_mangen::Man::new(Cli::command()).render(&mut page)?;
    for command in Cli::command().get_subcommands() {
        let heading = format!(".SH \"penstock {}\"\n", command.get_name());
        page.extend_from_slice(heading.as_bytes());
        let command = command.clone().disable_help_flag(true);
        clap_mangen::Man::new(command.clone()).render_description_section(&mut page)?;
        clap_mangen::Man::new(command).render_options_section(&mut page)?;
    }
    io::stdout().write_all(&page)?;
    Ok(ExitCode::SUCCESS)
}
