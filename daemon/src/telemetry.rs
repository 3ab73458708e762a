//! Logs, metrics, and the panic hook.

mod log_rate;

use std::io::IsTerminal as _;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::{LogConfig, LogFormat};

pub use log_rate::LogRateLimit;

/// Upper bounds of duration histograms, in seconds.
const SECONDS: &[f64] = &[0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0];

/// Initializes logging and metrics for the whole process. Returns the handle that renders `/metrics`, and the limit
/// that reports suppressed log lines.
pub fn start(log: &LogConfig) -> anyhow::Result<(PrometheusHandle, LogRateLimit)> {
    let rate = LogRateLimit::default();
    let filter = EnvFilter::try_new(&log.filter)
        .map_err(|error| anyhow::anyhow!("log.filter: `{}`: {error}", log.filter))?;
    let registry = tracing_subscriber::registry().with(filter).with(rate.clone());
    match log.format {
        LogFormat::Text => {
            // Colours are for a terminal, not for a log file.
            let ansi = std::io::stderr().is_terminal();
            let text = tracing_subscriber::fmt::layer().with_ansi(ansi).with_writer(std::io::stderr);
            registry.with(text).try_init()?;
        }
        LogFormat::Json => {
            registry.with(tracing_subscriber::fmt::layer().json().with_writer(std::io::stderr)).try_init()?;
        }
    }
    let log_panic = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tracing::error!(location = panic.location().map(tracing::field::display), "thread panicked");
        log_panic(panic);
    }));
    let metrics = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), SECONDS)?
        .install_recorder()?;
    Ok((metrics, rate))
}
