//! `hearth`: parses the command line, runs the command and exits with its exit code.

use std::process::ExitCode;
use std::time::Duration;

use hearth::{cli, exit};

fn main() -> ExitCode {
    // Answers a shell that asks for completions, and returns otherwise.
    cli::complete_for_shell();
    let arguments = match cli::parse(std::env::args_os()) {
        Ok(arguments) => arguments,
        Err(end) => return end.report(),
    };
    let json = arguments.globals.json;
    cli::start_tracing(arguments.globals.verbose);
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return exit::report(Err(error.into()), json),
    };
    let outcome = runtime.block_on(cli::run(arguments));
    // A task on a blocking thread (such as an interrupted pack) gets a moment to clean up.
    runtime.shutdown_timeout(Duration::from_millis(500));
    exit::report(outcome, json)
}
