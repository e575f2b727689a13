//! `penstock-testpmd`: one benchmark run from the command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    match penstock_testpmd::run(std::env::args().collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("penstock-testpmd: {error}");
            ExitCode::FAILURE
        }
    }
}
