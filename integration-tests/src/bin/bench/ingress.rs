//! Requests through the ingress, compared with other proxies in front of the same instance, and with the instance
//! itself.

mod proxy;
mod relay;

use std::cell::RefCell;
use std::path::Path;
use std::time::Duration;

use super::backend::Backend;
use super::figures::Figure;
use super::load::{Ask, Load, Target};
use super::serve;
use super::side::Bench;
use super::turns::in_turns_by;
use proxy::Proxy;

/// Number of kept connections, and number of requests of one round on all of them.
const TINY_LOADS: [(usize, usize); 2] = [(1, 4_000), (32, 20_000)];
const LARGE: u64 = 10_000_000;
const LARGE_CONNECTIONS: usize = 4;
const LARGE_REQUESTS: usize = 40;
const HUGE: u64 = 100_000_000;
/// Maximum growth of hearthd's memory for one body, in megabytes.
const GROWTH_BOUND_MB: f64 = 16.0;
/// Maximum ratio of times to nginx: 0.8 of its requests per second.
const OF_NGINX: f64 = 1.25;
/// Maximum ratio of times to caddy or kamal-proxy: twice their requests per second.
const OF_A_GO_PROXY: f64 = 0.5;
/// Maximum ratio of times to direct requests: 0.9 of their bytes per second.
const OF_DIRECT: f64 = 1.11;

pub fn chapter(bench: &Bench) -> Vec<Figure> {
    let backend = Backend::start(bench, "bench-ingress");
    let (ours, direct) = (backend.through_ingress(bench), backend.direct(bench));
    let peer =
        |name, how, start: fn(&Path, &Target) -> _| Peer { name, how, proxy: start(&bench.work, &direct) };
    let nginx = peer("nginx", "apt-get install nginx-light", Proxy::nginx);
    let caddy = peer("caddy", "apt-get install caddy", Proxy::caddy);
    let kamal = peer("kamal-proxy", "built from github.com/basecamp/kamal-proxy", Proxy::kamal);
    let mut figures = Vec::new();
    for (connections, requests) in TINY_LOADS {
        let load = Load {
            ask: Ask::Get("/"),
            answer: serve::TINY.len() as u64,
            connections,
            requests,
            late: Duration::ZERO,
        };
        let what = shown(connections);
        figures.extend(beside(&what, &load, &ours, &nginx, OF_NGINX));
        for peer in [&caddy, &kamal] {
            let what = format!("{what}, beside {}", peer.name);
            figures.extend(beside(&what, &load, &ours, peer, OF_A_GO_PROXY));
        }
        let (rates, _) = measure(&load, &ours, &direct);
        let what = format!("{what}, beside no proxy at all");
        figures.push(Figure::rate(what, rates, requests as f64, "/s", "the instance itself", None));
    }
    // Measured first, before other bodies have enlarged hearthd's memory.
    figures.extend(huge_bodies(bench, &ours));
    figures.extend(large_bodies(&ours, &direct, &[nginx, caddy, kamal]));
    backend.remove(bench);
    figures
}

fn shown(connections: usize) -> String {
    let connections = if connections == 1 {
        "1 kept connection".to_owned()
    } else {
        format!("{connections} kept connections")
    };
    format!("a tiny answer on {connections}")
}

type Sides = (Vec<Duration>, Vec<Duration>);

struct Peer {
    name: &'static str,
    /// Instructions to install the proxy.
    how: &'static str,
    /// The running proxy; `None` when it is not installed.
    proxy: Option<Proxy>,
}

/// Measures total times and 99th percentiles of both sides, after a warm-up of each.
fn measure(load: &Load, ours: &Target, theirs: &Target) -> (Sides, Sides) {
    let p99 = RefCell::new((Vec::new(), Vec::new()));
    let warm = Load { requests: load.requests.div_ceil(10).max(load.connections), ..*load };
    warm.run(ours);
    warm.run(theirs);
    let whole = in_turns_by(
        |_| {
            let times = load.run(ours);
            p99.borrow_mut().0.push(times.p99());
            times.whole
        },
        |_| {
            let times = load.run(theirs);
            p99.borrow_mut().1.push(times.p99());
            times.whole
        },
    );
    (whole, p99.into_inner())
}

/// Compares requests per second, which have a bound of their own, and the 99th percentile, which must not be worse.
fn beside(what: &str, load: &Load, ours: &Target, peer: &Peer, bound: f64) -> [Figure; 2] {
    let of_p99 = format!("{what}, p99");
    let Peer { name, how, proxy } = peer;
    let Some(proxy) = proxy else {
        let why = format!("{name} is not installed ({how})");
        return [Figure::not_measured(what, &why), Figure::not_measured(of_p99, &why)];
    };
    let (rates, p99) = measure(load, ours, &proxy.target);
    [
        Figure::rate(what, rates, load.requests as f64, "/s", name, Some(bound)),
        Figure::ratio(of_p99, p99, name, Some(1.0)),
    ]
}

/// Compares large bodies. Proxies that are not installed are omitted: they have no bound.
fn large_bodies(ours: &Target, direct: &Target, proxies: &[Peer]) -> Vec<Figure> {
    let counted = format!("{LARGE}\n").len() as u64;
    let megabytes = LARGE as f64 * LARGE_REQUESTS as f64 / 1e6;
    let ways = [
        ("bodies of 10 MB from the service", Ask::Get("/bytes/10000000"), LARGE),
        ("bodies of 10 MB to the service", Ask::Post("/sink", LARGE), counted),
    ];
    let relay = relay::start(direct);
    let figures = |(what, ask, answer)| {
        let (connections, requests) = (LARGE_CONNECTIONS, LARGE_REQUESTS);
        let load = Load { ask, answer, connections, requests, late: Duration::ZERO };
        let what = format!("{what}, on {connections} connections");
        let (beside_relay, _) = measure(&load, ours, &relay);
        let (beside_direct, _) = measure(&load, ours, direct);
        let floor = format!("{what}, beside bytes that the kernel moves and nobody reads");
        let mut figures = vec![
            Figure::rate(&what, beside_direct, megabytes, " MB/s", "the instance itself", Some(OF_DIRECT)),
            Figure::rate(floor, beside_relay, megabytes, " MB/s", "a relay by `splice`", None),
        ];
        for Peer { name, proxy, .. } in proxies {
            let Some(proxy) = proxy else { continue };
            let (beside_proxy, _) = measure(&load, ours, &proxy.target);
            let what = format!("{what}, beside {name}");
            figures.push(Figure::rate(what, beside_proxy, megabytes, " MB/s", name, None));
        }
        figures
    };
    ways.map(figures).into_iter().flatten().collect()
}

/// Measures the memory of hearthd while a body of 100 MB passes. The reader waits before it reads: a proxy that buffers
/// the body does so meanwhile.
fn huge_bodies(bench: &Bench, ours: &Target) -> Vec<Figure> {
    let counted = format!("{HUGE}\n").len() as u64;
    let ways = [
        ("from the service to a late reader", Ask::Get("/bytes/100000000"), HUGE, serve::READ_DELAY),
        (
            "from a client to a service that reads late",
            Ask::Post("/sink/late", HUGE),
            counted,
            Duration::ZERO,
        ),
    ];
    let figure = |(way, ask, answer, late)| {
        let load = Load { ask, answer, connections: 1, requests: 1, late };
        let growth = bench.memory_growth(|| drop(load.run(ours)));
        let what = format!("growth of hearthd's memory by a body of 100 MB {way}");
        Figure::amount(what, growth / 1e6, "MB", GROWTH_BOUND_MB)
    };
    ways.map(figure).into()
}
