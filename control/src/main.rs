//! The `penstock` command: arguments enter, output and an exit code leave (0 done, 1 refused, 2 wrong arguments;
//! of `--check` 0 up, 1 down, 2 nobody answers).

use std::error::Error;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use penstock_control::api::client::{Client, ClientError};
use penstock_control::api::types::{Answer, Request, Select, WorkerStatus};
use penstock_control::cli::{Cli, Command, Show};
use penstock_control::config::{Config, ConfigError, Machine};
use penstock_control::health::{self, Health};
use penstock_control::{process_log, run, show, top};
use serde_json::json;

type Done = Result<ExitCode, Box<dyn Error>>;

fn main() -> ExitCode {
    // Before anything is read: `check` holds secrets too.
    if let Err(error) = penstock_tables::dump::leave_out() {
        complain(format_args!("penstock: core dumps cannot be switched off: {error}"));
    }
    let cli = Cli::parse();
    match dispatch(&cli) {
        Ok(code) => code,
        Err(error) if is_broken_pipe(error.as_ref()) => ExitCode::SUCCESS,
        Err(error) => {
            match error.downcast_ref::<ConfigError>() {
                // Begins with the file's name, as a compiler's message does.
                Some(error) => complain(error),
                None if cli.json => complain(json!({ "error": error.to_string() })),
                None => complain(format_args!("penstock: {error}")),
            }
            ExitCode::FAILURE
        }
    }
}

fn dispatch(cli: &Cli) -> Done {
    match &cli.command {
        Command::Up => gateway(cli, true),
        Command::Control => gateway(cli, false),
        Command::Check { file } => check(file.as_deref().unwrap_or(&cli.config), cli.json),
        Command::Apply => ask(cli, &Request::Apply, false),
        Command::Status { check: false } => ask(cli, &Request::Status, false),
        Command::Status { check: true } => verdict(cli, gateway_health),
        Command::Show { what } => match what {
            Show::Sa { tunnel, which } => {
                ask(cli, &Request::Sas { tunnel: tunnel.clone(), select: which.into() }, false)
            }
            Show::Tunnels { which } => ask(cli, &Request::Tunnels { select: which.into() }, false),
            Show::Routes { which } => ask(cli, &Request::Routes { select: which.into() }, false),
            Show::Ike { tunnel } => ask(cli, &Request::Ike { tunnel: tunnel.clone() }, false),
            Show::Drops { all } => ask(cli, &Request::Drops, *all),
            Show::Ports => ask(cli, &Request::Ports, false),
            Show::Workers { interval: None } => ask(cli, &Request::Workers, false),
            Show::Workers { interval: Some(seconds) } => workers(cli, *seconds),
        },
        Command::Top { interval, readings } => {
            top::run(&mut connect(cli)?, *interval, *readings, cli.json)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Rekey { tunnel: None, force, .. } => ask(cli, &Request::RekeyAll { force: *force }, false),
        Command::Rekey { tunnel: Some(tunnel), generation, force, ike, .. } => {
            let (tunnel, generation) = (tunnel.clone(), *generation);
            ask(cli, &Request::Rekey { tunnel, generation, force: *force, ike: *ike }, false)
        }
        Command::Initiate { tunnel } => ask(cli, &Request::Initiate { tunnel: tunnel.clone() }, false),
        Command::Terminate { tunnel, ike } => {
            ask(cli, &Request::Terminate { tunnel: tunnel.clone(), ike: *ike }, false)
        }
        Command::Why { tunnel, check: false } => ask(cli, &Request::Why { tunnel: tunnel.clone() }, false),
        Command::Why { tunnel, check: true } => verdict(cli, |client| tunnel_health(client, tunnel)),
        Command::Log { tunnel, lines } => {
            ask(cli, &Request::Log { tunnel: tunnel.clone(), lines: *lines }, false)
        }
        Command::Completions { shell } => completions(*shell),
        Command::Man => man(),
    }
}

/// Whether nobody reads our output any more (`| head`, `| grep -q`), which is no error. A broken connection to the gateway is one.
fn is_broken_pipe(error: &(dyn Error + 'static)) -> bool {
    let json = error.downcast_ref::<serde_json::Error>().and_then(serde_json::Error::io_error_kind);
    let kind = json.or_else(|| error.downcast_ref::<io::Error>().map(io::Error::kind));
    kind == Some(io::ErrorKind::BrokenPipe)
}

/// A line for standard error, where somebody reads it.
fn complain(line: impl std::fmt::Display) {
    let _ = writeln!(io::stderr(), "{line}");
}

fn unexpected() -> ClientError {
    io::Error::other("it answered something else").into()
}

fn gateway_health(client: &mut Client) -> Result<Health, ClientError> {
    let Answer::Status(status) = client.ask(&Request::Status)? else { return Err(unexpected()) };
    match client.ask_all(&Request::Tunnels { select: Select::default() })? {
        Answer::Tunnels(page) => Ok(health::of_gateway(&status, &page.rows)),
        _ => Err(unexpected()),
    }
}

fn tunnel_health(client: &mut Client, tunnel: &str) -> Result<Health, ClientError> {
    match client.ask(&Request::Why { tunnel: tunnel.into() })? {
        Answer::Why(why) => Ok(health::of_tunnel(&why)),
        _ => Err(unexpected()),
    }
}

/// One line and an exit code, for scripts.
fn verdict(cli: &Cli, ask: impl FnOnce(&mut Client) -> Result<Health, ClientError>) -> Done {
    let health = match connect(cli).and_then(|mut client| ask(&mut client)) {
        Ok(health) => health,
        Err(error) => {
            complain(format_args!("penstock: {error}"));
            return Ok(ExitCode::from(2));
        }
    };
    // The code counts, also where nobody reads the line.
    let _ = match cli.json {
        true => writeln!(io::stdout(), "{}", json!(health)),
        false => writeln!(io::stdout(), "{}", health.text),
    };
    Ok(if health.good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs a gateway in the foreground.
fn gateway(cli: &Cli, supervise: bool) -> Done {
    process_log::begin(cli.log_format);
    let mut checked = Config::load(&cli.config, &Machine::this())?;
    checked.warnings.iter().for_each(|warning| log::warn!("{warning}"));
    if let Some(name) = &cli.name {
        checked.config.name.clone_from(name);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run::run(checked, cli.name.clone(), supervise))?;
    Ok(ExitCode::SUCCESS)
}

fn connect(cli: &Cli) -> Result<Client, ClientError> {
    let name =
        cli.name.clone().unwrap_or_else(|| Config::name_in(&cli.config).unwrap_or_else(|| "penstock".into()));
    Client::connect(&run::socket(&name))
}

fn ask(cli: &Cli, request: &Request, all: bool) -> Done {
    tell(cli, &connect(cli)?.ask_all(request)?, all)
}

/// What the workers did in so many seconds.
fn workers(cli: &Cli, seconds: f64) -> Done {
    let mut client = connect(cli)?;
    let mut reading = || match client.ask(&Request::Workers)? {
        Answer::Workers(workers) => Ok(workers),
        _ => Err(unexpected()),
    };
    let before = reading()?;
    std::thread::sleep(std::time::Duration::from_secs_f64(seconds));
    let since = |now: WorkerStatus| before.get(now.worker).map_or(now.clone(), |then| now.since(then));
    tell(cli, &Answer::Workers(reading()?.into_iter().map(since).collect()), false)
}

fn tell(cli: &Cli, answer: &Answer, all: bool) -> Done {
    let mut out = io::stdout().lock();
    if cli.json {
        serde_json::to_writer_pretty(&mut out, &bare(answer)?)?;
        writeln!(out)?;
    } else {
        out.write_all(show::text(answer, all).as_bytes())?;
    }
    if let Some((next, rows)) = answer.next() {
        out.flush()?;
        complain(format_args!("{rows} rows; more with --after '{next}'"));
    }
    Ok(ExitCode::SUCCESS)
}

/// The answer without its name: who asked knows what for. A list is its rows.
fn bare(answer: &Answer) -> Result<serde_json::Value, serde_json::Error> {
    let value = match answer {
        Answer::Tunnels(page) => return serde_json::to_value(&page.rows),
        Answer::Sas(page) => return serde_json::to_value(&page.rows),
        Answer::Routes(page) => return serde_json::to_value(&page.rows),
        Answer::Workers(workers) => return workers.iter().map(worker).collect(),
        _ => serde_json::to_value(answer)?,
    };
    Ok(match value {
        serde_json::Value::Object(map) => {
            map.into_iter().next().map_or_else(|| json!({}), |(_, value)| value)
        }
        value => value,
    })
}

/// A worker with what follows from its counters.
fn worker(worker: &WorkerStatus) -> Result<serde_json::Value, serde_json::Error> {
    let mut value = serde_json::to_value(worker)?;
    value["busy_share"] = json!(worker.busy_share());
    value["frames_per_burst"] = json!(worker.frames_per_burst());
    value["cycles_per_frame"] = json!(worker.cycles_per_frame());
    value["headroom"] = json!(worker.headroom());
    Ok(value)
}

fn check(file: &Path, json: bool) -> Done {
    let result = Config::load(file, &Machine::this());
    let code = if result.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    if json {
        let (complaints, warnings) = match &result {
            Ok(checked) => (Vec::new(), checked.warnings.clone()),
            Err(error) => (error.complaints.clone(), Vec::new()),
        };
        let answer =
            json!({ "file": file, "good": result.is_ok(), "complaints": complaints, "warnings": warnings });
        writeln!(io::stdout(), "{answer:#}")?;
        return Ok(code);
    }
    let checked = result?;
    for warning in &checked.warnings {
        complain(format_args!("{}: warning: {warning}", file.display()));
    }
    let (ports, tunnels) = (checked.config.ports.len(), checked.config.tunnels.len());
    writeln!(io::stdout(), "{}: good: {ports} ports, {tunnels} tunnels", file.display())?;
    Ok(code)
}

fn completions(shell: clap_complete::Shell) -> Done {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "penstock", &mut script);
    io::stdout().write_all(&script)?;
    Ok(ExitCode::SUCCESS)
}

fn man() -> Done {
    let mut page = Vec::new();
    let root = Cli::command();
    clap_mangen::Man::new(root.clone()).render(&mut page)?;
    for command in root.get_subcommands() {
        writeln!(page, ".SH \"penstock {}\"", command.get_name())?;
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        writeln!(page, "{about}.")?;
        let inner = command.get_subcommands().map(|one| (one.get_name(), one.get_about()));
        for (name, about) in inner {
            writeln!(page, ".TP\n\\fB{name}\\fR\n{}", about.map(ToString::to_string).unwrap_or_default())?;
        }
        for argument in command.get_arguments().filter(|argument| !argument.is_hide_set()) {
            let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
            let name =
                argument.get_long().map_or_else(|| argument.get_id().to_string(), |long| format!("--{long}"));
            writeln!(page, ".TP\n\\fB{}\\fR\n{help}", name.replace('-', "\\-"))?;
        }
    }
    io::stdout().write_all(&page)?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pipe that nobody reads.
    struct Closed;

    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
    }

    #[test]
    fn a_reader_that_leaves_is_no_error_and_a_gateway_that_leaves_is_one() {
        let json = serde_json::to_writer_pretty(Closed, &json!({ "a": 1 })).unwrap_err();
        let text = Closed.write_all(b"a").unwrap_err();
        let errors: [Box<dyn Error>; 2] = [json.into(), text.into()];
        assert!(errors.iter().all(|error| is_broken_pipe(error.as_ref())));
        let gateway: Box<dyn Error> = ClientError::from(io::Error::from(io::ErrorKind::BrokenPipe)).into();
        assert!(!is_broken_pipe(gateway.as_ref()));
    }
}
