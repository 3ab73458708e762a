use super::*;
use proptest::prelude::*;

const MB: u64 = 1 << 20;

fn limits(running: usize, disk: u64) -> BuilderLimits {
    BuilderLimits {
        running,
        kept_caches: 10,
        cache_bytes: disk,
        idle_timeout: Duration::from_secs(300),
        idle_memory: 100 * MB,
        keep_unused: Duration::from_secs(86_400),
    }
}

fn domain(name: &str) -> TrustDomain {
    name.parse().unwrap()
}

/// Owners in which the services whose ids begin with `ann` belong to Ann.
fn owners() -> ShareOwnerResolver {
    let owners = ShareOwnerResolver::default();
    owners.set_service_creators(|id| id.starts_with("ann").then(|| "ann".to_owned()));
    owners
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + second).unwrap()
}

fn grant(ticket: u64, name: &str) -> Option<BuilderAction> {
    Some(BuilderAction::Grant(LeaseTicket(ticket), domain(name)))
}

/// Creates a policy with one builder for each name, started in this order.
fn with_builders(limits: BuilderLimits, names: &[&str]) -> BuilderPolicy {
    let mut policy = BuilderPolicy::new(limits, owners());
    for (second, name) in (0..).zip(names) {
        let now = at(second);
        policy.request(LeaseTicket(1000), domain(name));
        assert_eq!(policy.next_action(now), Some(BuilderAction::Start(domain(name))));
        assert_eq!(policy.next_action(now), grant(1000, name));
        policy.release(&domain(name), now);
    }
    policy
}

#[test]
fn the_builder_used_last_stays_and_the_others_are_stopped_when_idle() {
    let mut policy = with_builders(limits(4, u64::MAX), &["a", "b", "c"]);
    assert_eq!(policy.next_action(at(299)), None);
    assert_eq!(policy.next_action(at(300)), Some(BuilderAction::Stop(domain("a"))));
    assert_eq!(policy.next_action(at(3000)), Some(BuilderAction::Stop(domain("b"))));
    assert_eq!(policy.next_action(at(30_000)), None);
    policy.mark_stopped(&domain("a"));
    policy.request(LeaseTicket(1), domain("a"));
    assert_eq!(policy.next_action(at(30_001)), Some(BuilderAction::Start(domain("a"))));
    assert_eq!(policy.next_action(at(30_001)), grant(1, "a"));
    // `a` has a build, and `c` was used long before.
    assert_eq!(policy.next_action(at(30_001)), Some(BuilderAction::Stop(domain("c"))));
}

#[test]
fn a_discarded_builder_is_emptied_before_it_serves_its_domain_again() {
    let mut policy = with_builders(limits(2, u64::MAX), &["a", "b"]);
    policy.record_measurement(&domain("b"), 9 * MB, false);
    policy.request(LeaseTicket(1), domain("b"));
    assert_eq!(policy.next_action(at(10)), grant(1, "b"));
    assert!(policy.discard(&domain("b")), "whatever uses it");
    assert!(!policy.discard(&domain("b")), "once");
    policy.request(LeaseTicket(2), domain("b"));
    assert_eq!(policy.next_action(at(11)), None);
    policy.mark_stopped(&domain("b"));
    assert_eq!(policy.next_action(at(12)), Some(BuilderAction::Remove(domain("b"))));
    assert_eq!(policy.next_action(at(12)), None);
    policy.mark_removed(&domain("b"));
    assert_eq!(policy.next_action(at(13)), Some(BuilderAction::Start(domain("b"))));
    assert_eq!(policy.next_action(at(13)), grant(2, "b"));
    let standing =
        policy.domain_builders().find(|(of, _)| **of == domain("b")).map(|(_, standing)| *standing).unwrap();
    assert_eq!((standing.builds, standing.disk, standing.discarded), (1, 0, false));
}

#[test]
fn a_new_domain_takes_the_place_of_an_idle_one_and_waits_for_a_busy_one() {
    let mut policy = with_builders(limits(2, u64::MAX), &["a", "b"]);
    policy.request(LeaseTicket(1), domain("b"));
    assert_eq!(policy.next_action(at(10)), grant(1, "b"));
    policy.request(LeaseTicket(2), domain("c"));
    assert_eq!(policy.next_action(at(11)), Some(BuilderAction::Stop(domain("a"))));
    // The slot is being freed, so a request for a running builder delays no other.
    policy.request(LeaseTicket(3), domain("b"));
    assert_eq!(policy.next_action(at(11)), grant(3, "b"));
    policy.mark_stopped(&domain("a"));
    assert_eq!(policy.next_action(at(12)), Some(BuilderAction::Start(domain("c"))));
    assert_eq!(policy.next_action(at(12)), grant(2, "c"));
    // Both builders are busy: the next domain waits, and no request overtakes it.
    policy.request(LeaseTicket(4), domain("d"));
    policy.request(LeaseTicket(5), domain("b"));
    assert_eq!(policy.next_action(at(13)), None);
    policy.release(&domain("b"), at(14));
    assert_eq!(policy.next_action(at(14)), None, "one build of `b` still runs");
    policy.release(&domain("b"), at(15));
    // `b` is requested too, but later.
    policy.release(&domain("c"), at(15));
    assert_eq!(policy.next_action(at(15)), Some(BuilderAction::Stop(domain("c"))));
    assert_eq!(policy.next_action(at(15)), grant(5, "b"));
}

#[test]
fn the_least_used_cache_pays_first_and_the_newest_last() {
    let mut policy = with_builders(limits(4, 100 * MB), &["a", "b", "c"]);
    policy.restore(domain("old"), at(-10), 40 * MB);
    for (name, disk) in [("a", 30), ("b", 30), ("c", 60)] {
        policy.record_measurement(&domain(name), disk * MB, false);
    }
    assert_eq!(policy.next_action(at(5)), Some(BuilderAction::Remove(domain("old"))));
    assert_eq!(policy.next_action(at(5)), None, "what that frees is looked at first");
    policy.mark_removed(&domain("old"));
    assert_eq!(policy.next_action(at(5)), Some(BuilderAction::Prune { domain: domain("a"), keep: 10 * MB }));
    // The remaining 25 MB are in use.
    policy.record_measurement(&domain("a"), 25 * MB, true);
    assert_eq!(policy.next_action(at(5)), Some(BuilderAction::Prune { domain: domain("b"), keep: 15 * MB }));
    policy.record_measurement(&domain("b"), 0, true);
    assert_eq!(policy.next_action(at(5)), None);
    policy.record_measurement(&domain("c"), 80 * MB, false);
    assert_eq!(policy.next_action(at(5)), Some(BuilderAction::Prune { domain: domain("c"), keep: 75 * MB }));
}

#[test]
fn a_cache_that_nobody_used_for_long_is_given_back() {
    let day = 86_400;
    let mut policy =
        with_builders(BuilderLimits { idle_timeout: Duration::MAX, ..limits(4, u64::MAX) }, &["a", "b"]);
    policy.restore(domain("old"), at(-day), 40 * MB);
    policy.record_measurement(&domain("b"), 30 * MB, false);
    assert_eq!(policy.next_action(at(-1)), None);
    assert_eq!(policy.next_action(at(0)), Some(BuilderAction::Remove(domain("old"))));
    policy.mark_removed(&domain("old"));
    assert_eq!(policy.next_action(at(day)), None, "there is nothing to remove of `a`");
    let prune = Some(BuilderAction::Prune { domain: domain("b"), keep: 0 });
    assert_eq!(policy.next_action(at(day + 1)), prune);
    assert_eq!(policy.next_action(at(day + 1)), None, "it is pruned once at a time");
    policy.record_measurement(&domain("b"), 5 * MB, true);
    assert_eq!(policy.next_action(at(3 * day)), None, "what is left is in use");
    policy.request(LeaseTicket(1), domain("b"));
    assert_eq!(policy.next_action(at(3 * day)), grant(1, "b"));
    policy.record_measurement(&domain("b"), 50 * MB, false);
    assert_eq!(policy.next_action(at(9 * day)), None, "a build uses it");
    policy.release(&domain("b"), at(9 * day));
    assert_eq!(policy.next_action(at(10 * day)), prune);
}

#[test]
fn a_room_without_images_keeps_no_cache_for_long() {
    let mut policy =
        with_builders(BuilderLimits { idle_timeout: Duration::MAX, ..limits(4, u64::MAX) }, &["a"]);
    policy.record_measurement(&domain("a"), 30 * MB, false);
    assert_eq!(policy.next_action(at(600)), None);
    policy.set_room_empty(true);
    assert_eq!(policy.next_action(at(599)), None, "a first build may just have ended");
    policy.set_room_empty(false);
    assert_eq!(policy.next_action(at(600)), None);
    policy.set_room_empty(true);
    assert_eq!(policy.next_action(at(600)), Some(BuilderAction::Prune { domain: domain("a"), keep: 0 }));
}

#[test]
fn a_large_builder_is_restarted_once_after_each_use() {
    let mut policy = with_builders(limits(4, u64::MAX), &["a"]);
    let a = domain("a");
    assert!(!policy.takes_restart(&a, 101 * MB, at(29)), "the next build may follow at once");
    assert!(!policy.takes_restart(&a, 100 * MB, at(30)));
    assert!(policy.takes_restart(&a, 101 * MB, at(30)));
    assert!(!policy.takes_restart(&a, 101 * MB, at(300)), "a restart did not help");
    policy.request(LeaseTicket(1), a.clone());
    assert!(!policy.takes_restart(&a, 101 * MB, at(300)), "a build waits for it");
    assert_eq!(policy.next_action(at(301)), grant(1, "a"));
    assert!(!policy.takes_restart(&a, 101 * MB, at(400)), "a build uses it");
    policy.release(&a, at(400));
    assert!(policy.takes_restart(&a, 101 * MB, at(430)));
    assert!(!policy.takes_restart(&domain("b"), 101 * MB, at(430)));
}

#[test]
fn the_number_of_caches_is_bounded() {
    let mut policy = with_builders(BuilderLimits { kept_caches: 2, ..limits(2, u64::MAX) }, &["a", "b"]);
    policy.request(LeaseTicket(1), domain("c"));
    assert_eq!(policy.next_action(at(9)), Some(BuilderAction::Stop(domain("a"))));
    policy.mark_stopped(&domain("a"));
    assert_eq!(policy.next_action(at(9)), Some(BuilderAction::Start(domain("c"))));
    assert_eq!(policy.next_action(at(9)), grant(1, "c"));
    assert_eq!(policy.next_action(at(9)), Some(BuilderAction::Remove(domain("a"))));
}

/// Executes the actions of the policy until there are none.
fn all_of(policy: &mut BuilderPolicy, now: Timestamp) -> Vec<BuilderAction> {
    let mut actions = Vec::new();
    while let Some(action) = policy.next_action(now) {
        match &action {
            BuilderAction::Stop(domain) => policy.mark_stopped(domain),
            BuilderAction::Remove(domain) => policy.mark_removed(domain),
            BuilderAction::Grant(_, domain) => policy.release(domain, now),
            BuilderAction::Start(_) | BuilderAction::Prune { .. } => {}
        }
        actions.push(action);
    }
    actions
}

#[test]
fn services_of_one_participant_push_out_each_other_and_nobody_else() {
    let mut policy = with_builders(BuilderLimits { kept_caches: 4, ..limits(4, u64::MAX) }, &["caller:bob"]);
    for number in 0..8 {
        let now = at(10 + number);
        policy.request(LeaseTicket(1), domain(&format!("service:ann{number}")));
        for action in all_of(&mut policy, now) {
            assert!(
                !matches!(&action, BuilderAction::Stop(gone) | BuilderAction::Remove(gone) if gone.as_str() == "caller:bob"),
                "{action:?}"
            );
        }
    }
    // Bob's builder is stopped for being idle while Ann's run, but its cache stays.
    let newest = domain("service:ann7");
    policy.request(LeaseTicket(2), newest.clone());
    assert_eq!(all_of(&mut policy, at(305)).last(), Some(&BuilderAction::Stop(domain("caller:bob"))));
    policy.request(LeaseTicket(3), domain("service:ann8"));
    all_of(&mut policy, at(400));
    policy.request(LeaseTicket(4), domain("service:ann9"));
    all_of(&mut policy, at(401));
    let kept: Vec<_> = policy.domain_builders().map(|(domain, _)| domain.as_str().to_owned()).collect();
    assert_eq!(kept.len(), 4);
    assert!(kept.contains(&"caller:bob".to_owned()), "{kept:?}");
}

#[test]
fn caches_of_services_that_are_gone_are_forgotten_first_and_those_of_one_owner_pay_first() {
    let mut policy = BuilderPolicy::new(BuilderLimits { kept_caches: 4, ..limits(1, 100 * MB) }, owners());
    for (age, name) in ["caller:bob", "service:ann1", "service:ann2", "service:x", "service:y", "service:z"]
        .into_iter()
        .enumerate()
    {
        policy.restore(domain(name), at(i64::try_from(age).unwrap() - 100), 30 * MB);
    }
    let removed: Vec<_> = all_of(&mut policy, at(0))
        .into_iter()
        .filter_map(|action| match action {
            BuilderAction::Remove(domain) => Some(domain.as_str().to_owned()),
            _ => None,
        })
        .collect();
    // Three are beyond the quota, two beyond the number of caches.
    assert_eq!(removed, ["service:x", "service:ann1", "service:y"]);
}

#[derive(Clone, Debug)]
enum Step {
    Request(u8),
    Release(usize),
    Withdraw(usize),
    Measure(u8, u64),
    /// Reports the oldest unreported action as executed.
    Report,
    Pass(i64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0u8..6).prop_map(Step::Request),
        3 => any::<usize>().prop_map(Step::Release),
        1 => any::<usize>().prop_map(Step::Withdraw),
        2 => (0u8..6, 0u64..80).prop_map(|(of, disk)| Step::Measure(of, disk)),
        3 => Just(Step::Report),
        2 => (0i64..400).prop_map(Step::Pass),
    ];
    proptest::collection::vec(step, 0..150)
}

/// Returns the domain with this number; the first three belong to one owner.
fn named(n: u8) -> TrustDomain {
    domain(&if n < 3 { format!("service:ann{n}") } else { format!("d{n}") })
}

/// Model of the policy's environment, which checks each action.
#[derive(Default)]
struct World {
    now: i64,
    tickets: u64,
    waiting: Vec<(LeaseTicket, TrustDomain)>,
    granted: Vec<TrustDomain>,
    unreported: VecDeque<BuilderAction>,
}

impl World {
    fn take(&mut self, policy: &mut BuilderPolicy) -> Result<bool, TestCaseError> {
        let before: BTreeMap<TrustDomain, DomainBuilder> =
            policy.domain_builders().map(|(domain, standing)| (domain.clone(), *standing)).collect();
        let running = before.values().filter(|standing| standing.phase == BuilderPhase::Running).count();
        let of_owner = policy.owner_counts(DomainBuilder::is_kept);
        let Some(action) = policy.next_action(at(self.now)) else { return Ok(false) };
        match &action {
            BuilderAction::Start(domain) => {
                prop_assert!(
                    before.get(domain).is_none_or(|standing| standing.phase == BuilderPhase::Stopped)
                );
            }
            BuilderAction::Grant(ticket, domain) => {
                prop_assert_eq!(before[domain].phase, BuilderPhase::Running);
                let place = self.waiting.iter().position(|(waiting, _)| waiting == ticket).unwrap();
                let passed: BTreeSet<_> = self.waiting[..place].iter().map(|(_, domain)| domain).collect();
                prop_assert!(passed.len() <= policy.limits().running - running, "{ticket:?} passed others");
                self.waiting.remove(place);
                self.granted.push(domain.clone());
            }
            BuilderAction::Stop(domain) => {
                prop_assert_eq!((before[domain].phase, before[domain].builds), (BuilderPhase::Running, 0));
            }
            BuilderAction::Prune { domain, keep } => {
                prop_assert_eq!(before[domain].phase, BuilderPhase::Running);
                prop_assert!(*keep < before[domain].disk);
            }
            BuilderAction::Remove(domain) => {
                prop_assert_eq!(before[domain].phase, BuilderPhase::Stopped);
                prop_assert!(self.waiting.iter().all(|(_, waiting)| waiting != domain));
                let older = before.iter().filter(|(other, standing)| {
                    standing.phase == BuilderPhase::Stopped
                        && standing.last_used < before[domain].last_used
                        && of_owner[*other] >= of_owner[domain]
                        && self.waiting.iter().all(|(_, waiting)| waiting != *other)
                });
                prop_assert_eq!(older.count(), 0, "{} is not the least used", domain);
            }
        }
        if !matches!(action, BuilderAction::Grant(..) | BuilderAction::Start(_)) {
            self.unreported.push_back(action);
        }
        let places = policy
            .domain_builders()
            .filter(|(_, s)| matches!(s.phase, BuilderPhase::Running | BuilderPhase::Stopping))
            .count();
        prop_assert!(places <= policy.limits().running);
        Ok(true)
    }

    fn report(&mut self, policy: &mut BuilderPolicy) {
        match self.unreported.pop_front() {
            Some(BuilderAction::Stop(domain)) => policy.mark_stopped(&domain),
            Some(BuilderAction::Remove(domain)) => policy.mark_removed(&domain),
            Some(BuilderAction::Prune { domain, keep }) => policy.record_measurement(&domain, keep, true),
            _ => {}
        }
    }

    fn release(&mut self, policy: &mut BuilderPolicy, place: usize) {
        if !self.granted.is_empty() {
            let domain = self.granted.remove(place % self.granted.len());
            policy.release(&domain, at(self.now));
        }
    }
}

proptest! {
    #[test]
    fn every_request_is_answered_within_the_bounds(
        steps in steps(), running in 1usize..4, kept in 1usize..6, disk in 0u64..200,
    ) {
        let mut policy = BuilderPolicy::new(BuilderLimits { kept_caches: kept, ..limits(running, disk) }, owners());
        let mut world = World::default();
        for step in steps {
            match step {
                Step::Request(n) => {
                    world.tickets += 1;
                    let (ticket, domain) = (LeaseTicket(world.tickets), named(n));
                    world.waiting.push((ticket, domain.clone()));
                    policy.request(ticket, domain);
                }
                Step::Release(place) => world.release(&mut policy, place),
                Step::Withdraw(n) => if !world.waiting.is_empty() {
                    let (ticket, _) = world.waiting.remove(n % world.waiting.len());
                    prop_assert!(policy.withdraw(ticket) && !policy.withdraw(ticket));
                },
                Step::Measure(n, disk) => policy.record_measurement(&named(n), disk, false),
                Step::Report => world.report(&mut policy),
                Step::Pass(seconds) => world.now += seconds,
            }
            while world.take(&mut policy)? {}
        }
        // Once builds end and actions are executed, no request waits forever, and the limits hold.
        let mut rounds = 0;
        while world.take(&mut policy)? || !world.unreported.is_empty() || !world.granted.is_empty() {
            world.now += 1;
            world.report(&mut policy);
            world.release(&mut policy, 0);
            rounds += 1;
            prop_assert!(rounds < 10_000, "it does not come to rest");
        }
        prop_assert!(world.waiting.is_empty(), "{:?} wait for ever", world.waiting);
        prop_assert!(policy.domain_builders().count() <= policy.limits().kept_caches);
        let stands: Vec<_> = policy.domain_builders().collect();
        let total: u64 = stands.iter().map(|(_, standing)| standing.disk).sum();
        let only_newest_is_left = stands.iter().filter(|(_, s)| s.phase == BuilderPhase::Stopped).count() <= 1;
        prop_assert!(total <= disk || only_newest_is_left);
        prop_assert!(stands.is_empty() || policy.newest_running().is_some());
    }
}
