//! Time from `hearth deploy` to the first page that people see, compared with `docker run` where an engine answers; and
//! what people see of an update.

mod docker;

use std::cell::RefCell;
use std::time::{Duration, Instant};

use integration_tests::http::Request;
use integration_tests::service::App;
use integration_tests::traffic;
use integration_tests::wait::{self, seconds};
use serde_json::Value;

use super::backend::Backend;
use super::figures::{Figure, ROUNDS};
use super::serve;
use super::side::Bench;
use super::turns::{in_turns, in_turns_by, time};

const IMAGE: &str = "bench-page:1";
const PAGE: &str = "bench\n";
/// Time that `docker run -d -p` took to its first 200 response in a reference measurement, and the share of it that a
/// deploy may take.
const DOCKER_RUN: Duration = Duration::from_millis(311);
const SHARE: f64 = 0.4;
const UPDATES: usize = 5;
const LONGEST_GAP_MS: f64 = 50.0;
const UNDISTURBED: Duration = seconds(10);

pub fn chapter(bench: &Bench) -> Vec<Figure> {
    App::page(PAGE).pack(&bench.daemon, IMAGE);
    // Measured before any other deploy: nothing of the image has been unpacked.
    let first = deploy(bench, IMAGE, "page-first").took;
    remove(bench, "page-first");
    let mut figures = against_docker(bench);
    figures.push(Figure::shown("the first deploy of that image, with its unpacking (one run)", &[first]));
    figures.push(Figure::shown(
        "deploy of a new image on a base that is unpacked already",
        &of_new_images(bench),
    ));
    figures.extend(updates(bench));
    figures
}

/// A finished deploy.
struct Deployed {
    /// Time from the start of the command to the first 200 response through the ingress.
    took: Duration,
    events: Vec<Value>,
}

fn host(name: &str) -> String {
    format!("{name}.test")
}

fn deploy(bench: &Bench, image: &str, name: &str) -> Deployed {
    let host = host(name);
    let ingress = bench.daemon.ingress();
    let start = Instant::now();
    let deploy = ["deploy", "--tag", image, "--name", name, "--domain", &host, "--public"];
    let output = bench.hearth(&[&deploy[..], &["--progress", "json"]].concat());
    first_page(&ingress, &host);
    let took = start.elapsed();
    let events = output.stderr.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    Deployed { took, events }
}

/// Requests `/` until the response is 200.
fn first_page(address: &str, host: &str) {
    let asked = || {
        let answer = Request::new("GET", "/").host(host).try_send(address).ok()?;
        (answer.status == 200).then_some(())
    };
    let shown = wait::poll_within(Duration::from_millis(1), seconds(60), asked);
    assert!(shown.is_some(), "{host} at {address} answers 200");
}

fn remove(bench: &Bench, name: &str) {
    bench.hearth(&["services", "rm", "--now", name]);
}

/// Measures deploys of new services from an image that is already unpacked, and their removal.
fn against_docker(bench: &Bench) -> Vec<Figure> {
    let name = |round: usize| format!("page-{round}");
    let all_events = RefCell::new(Vec::new());
    let ours = |round: usize| {
        let deployed = deploy(bench, IMAGE, &name(round));
        all_events.borrow_mut().push(deployed.events);
        deployed.took
    };
    let to_first = "deploy of a small image as a new service, command to first 200 through the ingress";
    let removal = "`services rm --now` of it";
    let remove_of = |round: usize| move || remove(bench, &name(round));
    let (deploys, removals) = if let Some(docker) = docker::Docker::find() {
        let image = docker.load(bench, IMAGE);
        docker.run(&image, &name(ROUNDS));
        docker.remove(&name(ROUNDS));
        let deploys = in_turns_by(ours, |round| docker.run(&image, &name(round)));
        let removals = in_turns(remove_of, |round| {
            let (docker, name) = (&docker, name(round));
            move || docker.remove(&name)
        });
        docker.forget(&image);
        (
            Figure::ratio(to_first, deploys, "`docker run -d -p`", Some(SHARE)),
            Figure::ratio(removal, removals, "`docker stop -t 0` and `rm`", Some(SHARE)),
        )
    } else {
        let deploys: Vec<_> = (0..ROUNDS).map(ours).collect();
        let removals: Vec<_> = (0..ROUNDS).map(|round| time(remove_of(round))).collect();
        let bound = DOCKER_RUN.mul_f64(SHARE);
        let noted = format!(
            "{to_first} (no docker engine here; the bound is {SHARE} x the {} ms of `docker run` in the notes)",
            DOCKER_RUN.as_millis()
        );
        (Figure::time(noted, &deploys, bound), Figure::shown(removal, &removals))
    };
    let all_events = all_events.into_inner();
    let part = |shown: &str, of: &dyn Fn(&[Value]) -> Duration| {
        let times: Vec<_> = all_events.iter().map(|events| of(events)).collect();
        Figure::shown(format!("its part: {shown}"), &times)
    };
    let mut figures = vec![deploys];
    for name in ["image", "network", "mounts", "start"] {
        figures.push(part(name, &|events| part_of(events, name)));
    }
    figures.push(part("probe, from the start to the first healthy answer", &probing));
    figures.push(removals);
    figures
}

fn of_new_images(bench: &Bench) -> Vec<Duration> {
    let deploys = (0..ROUNDS).map(|round| {
        let (image, name) = (format!("bench-new:{round}"), format!("new-{round}"));
        App::page(&format!("new {round}\n")).pack(&bench.daemon, &image);
        let took = deploy(bench, &image, &name).took;
        remove(bench, &name);
        took
    });
    deploys.collect()
}

fn find<'a>(events: &'a [Value], event: &str, field: &str, value: &str) -> &'a Value {
    events
        .iter()
        .find(|candidate| candidate["event"] == event && candidate[field] == value)
        .unwrap_or_else(|| panic!("no {event} of {value} in {events:?}"))
}

fn part_of(events: &[Value], name: &str) -> Duration {
    let part = find(events, "part", "name", name);
    Duration::from_secs_f64(part["took_seconds"].as_f64().expect("seconds"))
}

fn probing(events: &[Value]) -> Duration {
    let started = time_of(find(events, "action_ended", "action", "start"));
    let healthy = events.iter().find(|event| event["event"] == "probed" && event["healthy"] == true);
    let healthy = time_of(healthy.expect("a healthy probe"));
    // Midnight may lie between the two times.
    Duration::from_secs_f64((healthy - started).rem_euclid(86_400.0))
}

/// Returns the seconds of the day of an event's time, such as `2026-11-24T09:00:00.25Z`.
fn time_of(event: &Value) -> f64 {
    let time = event["time"].as_str().and_then(|time| time.split_once('T')).expect("a time").1;
    let parts = time.trim_end_matches('Z').split(':').map(|part| part.parse::<f64>().expect("a number"));
    parts.fold(0.0, |all, part| all * 60.0 + part)
}

/// Measures five updates under 200 requests a second, half on kept connections; the app keeps the ingress's
/// connections.
fn updates(bench: &Bench) -> Vec<Figure> {
    let backend = Backend::start(bench, "updated");
    let target = backend.through_ingress(bench);
    let watch = |work: &dyn Fn()| traffic::during(&target.address, &target.host, &[serve::TINY], work);
    // Baseline: such traffic on this machine without an update.
    let undisturbed = watch(&|| std::thread::sleep(UNDISTURBED));
    let seen = watch(&|| {
        for update in 0..UPDATES {
            let changed = format!("UPDATE={update}");
            bench.hearth(&["deploy", "--tag", backend.image(), "--name", backend.name(), "--env", &changed]);
        }
        std::thread::sleep(seconds(1));
    });
    assert!(seen.answers > 1000, "{} answers", seen.answers);
    seen.failed.iter().take(5).for_each(|failed| println!("failed: {failed}"));
    backend.remove(bench);
    let load = format!("{UPDATES} updates under 200 requests a second, half on kept connections");
    let milliseconds = |time: Duration| time.as_secs_f64() * 1000.0;
    vec![
        Figure::amount(format!("{load}: failed, of {}", seen.answers), seen.failures as f64, "requests", 0.0),
        Figure::amount(
            "the same: longest gap between two answers",
            milliseconds(seen.gap),
            "ms",
            LONGEST_GAP_MS,
        ),
        Figure::shown("the same: longest wait for one answer", &[seen.longest]),
        Figure::shown(
            format!("longest gap in {} s of that traffic without an update", UNDISTURBED.as_secs()),
            &[undisturbed.gap],
        ),
        Figure::shown("longest wait for one answer in them", &[undisturbed.longest]),
    ]
}
