//! `hearthd`: parses flags and configuration, then runs the daemon until a stop signal.

mod allocator;

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use hearthd::config::{self, Config, DaemonFlags};
use hearthd::daemon::Daemon;
use hearthd::{instance_log, network, shutdown, task, telemetry};

/// Exit code for an unusable configuration, as for wrong usage.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    if let Some(code) = instance_log::run_keeper() {
        return code;
    }
    if let Some(code) = network::steps::run_plugin() {
        return code;
    }
    allocator::set_up();
    let flags = DaemonFlags::parse();
    let config = match config::load(&flags) {
        Ok(config) => config,
        Err(error) => {
            print_error(&error);
            return ExitCode::from(USAGE);
        }
    };
    let outcome = match (flags.dump_config, flags.check_config) {
        (true, _) => dump(&config),
        (false, true) => Ok(()),
        (false, false) => run(config),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            print_error(&format_args!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn dump(config: &Config) -> anyhow::Result<()> {
    Ok(std::io::stdout().write_all(config.to_toml()?.as_bytes())?)
}

fn run(config: Config) -> anyhow::Result<()> {
    let (metrics, log_rate) = telemetry::start(&config.log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let stop = shutdown::on_signal()?;
        let giving_back = task::spawn("give memory back", allocator::return_memory_loop());
        let telling = task::spawn("tell what the log leaves out", log_rate.clone().report_loop());
        let daemon = Box::pin(Daemon::bind(config, metrics)).await?;
        let ended = Box::pin(daemon.run(stop)).await;
        giving_back.abort();
        telling.abort();
        log_rate.report();
        ended
    })
}

/// Prints an error to stderr, because the log may not exist yet.
fn print_error(error: &dyn std::fmt::Display) {
    // If standard error is closed, nobody is left to report to.
    let _ = writeln!(std::io::stderr(), "hearthd: error: {error}");
}
