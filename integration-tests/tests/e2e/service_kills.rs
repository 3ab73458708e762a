//! Kills containerd, a shim or an app at each step of an update of a service under traffic.
//!
//! | killed | the new one's shim or app | the old one's, in its drain | containerd |
//! |---|---|---|---|
//! | serves meanwhile | the old one until the switch | the new one | the one that served before |
//! | serves in the end | the new one: an instance ended from outside is started again | the new one | the new one |
//!
//! An old instance that ends before the switch is started again beside the new one. A new instance that is killed
//! repeatedly before it serves fails, and the old one continues to serve.

use integration_tests::daemon::Options;
use integration_tests::lone_cases;
use integration_tests::runner::Group;
use rustix::process::Signal;

#[path = "service_kills/update.rs"]
mod update;

pub use update::Victim;
use update::{Moment, World};

pub fn group() -> Group {
    let cases = lone_cases![
        an_update_whose_app_is_killed_at_any_step_comes_to_its_end,
        an_update_whose_shim_is_killed_at_any_step_comes_to_its_end,
        an_update_whose_containerd_is_killed_at_any_step_comes_to_its_end,
        a_revision_killed_at_each_start_fails_and_the_old_one_keeps_serving,
        a_service_whose_old_instance_ends_in_an_update_is_served_by_another_of_it,
    ];
    Group::new("service_kills", cases).in_sequence()
}

pub fn at_each_step(options: Options, victim: Victim) {
    let mut world = World::start(options);
    for moment in Moment::ALL {
        world.update_with_a_kill(victim, moment);
    }
}

fn an_update_whose_app_is_killed_at_any_step_comes_to_its_end() {
    at_each_step(Options::room("kill-app"), Victim::App);
}

fn an_update_whose_shim_is_killed_at_any_step_comes_to_its_end() {
    at_each_step(Options::room("kill-shim"), Victim::Shim);
}

fn an_update_whose_containerd_is_killed_at_any_step_comes_to_its_end() {
    at_each_step(Options::room("kill-ctd"), Victim::Containerd);
}

fn a_revision_killed_at_each_start_fails_and_the_old_one_keeps_serving() {
    World::start(Options::room("kill-again")).update_killed_whenever_it_starts();
}

fn a_service_whose_old_instance_ends_in_an_update_is_served_by_another_of_it() {
    let mut world = World::start(Options::room("kill-old"));
    // The app exits by itself on SIGTERM, or is killed.
    for signal in [Signal::TERM, Signal::KILL] {
        world.update_whose_old_app_ends(signal);
    }
}
