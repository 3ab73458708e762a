use super::*;
use proptest::prelude::*;

fn limits(concurrency: usize, queue: usize, per_caller: usize) -> AdmissionLimits {
    AdmissionLimits { concurrency, queue, per_caller }
}

fn submit(admission: &mut BuildAdmission, caller: &str) -> Result<BuildId, AdmissionError> {
    let place = admission.reserve(caller)?;
    let id = BuildId::random();
    admission.enqueue(place, id.clone());
    Ok(id)
}

#[test]
fn a_full_queue_says_when_to_come_back() {
    let mut admission = BuildAdmission::new(limits(1, 2, 10));
    let first = submit(&mut admission, "a").unwrap();
    assert_eq!(admission.start_next(), Some(first.clone()));
    submit(&mut admission, "a").unwrap();
    submit(&mut admission, "b").unwrap();
    let Err(AdmissionError::QueueFull { waiting: 2, retry_after }) = submit(&mut admission, "c") else {
        panic!("accepted");
    };
    assert!(retry_after >= Duration::from_secs(1));
    admission.mark_ended(&first);
    admission.start_next().unwrap();
    submit(&mut admission, "c").unwrap();
}

#[test]
fn a_place_has_a_slot_when_its_build_would_run_at_once() {
    let mut admission = BuildAdmission::new(limits(2, 10, 10));
    let first = admission.reserve("a").unwrap();
    assert!(admission.has_slot(&first));
    let second = admission.reserve("a").unwrap();
    assert!(!admission.has_slot(&second), "the other slot is kept for those that run nothing");
    admission.enqueue(first, BuildId::random());
    admission.start_next().unwrap();
    let other = admission.reserve("b").unwrap();
    assert!(admission.has_slot(&other));
    let third = admission.reserve("c").unwrap();
    assert!(!admission.has_slot(&third), "`b` has the last one");
    admission.drain();
    assert!(!admission.has_slot(&other));
}

#[test]
fn a_caller_at_its_limit_is_refused_and_others_are_not() {
    let mut admission = BuildAdmission::new(limits(2, 10, 2));
    let _held = admission.reserve("a").unwrap();
    submit(&mut admission, "a").unwrap();
    assert!(matches!(submit(&mut admission, "a"), Err(AdmissionError::CallerLimit { limit: 2, .. })));
    submit(&mut admission, "b").unwrap();
}

#[test]
fn a_place_that_is_given_back_is_free_again() {
    let mut admission = BuildAdmission::new(limits(1, 0, 1));
    let place = admission.reserve("a").unwrap();
    assert!(admission.reserve("b").is_err());
    admission.release_reservation(place);
    assert!(admission.reserve("b").is_ok());
}

#[test]
fn a_draining_queue_starts_and_accepts_nothing() {
    let mut admission = BuildAdmission::new(limits(1, 2, 2));
    submit(&mut admission, "a").unwrap();
    admission.drain();
    assert_eq!(admission.start_next(), None);
    assert_eq!(submit(&mut admission, "b"), Err(AdmissionError::Draining));
}

#[test]
fn slots_go_round_among_callers() {
    let mut admission = BuildAdmission::new(limits(1, 100, 100));
    let busy: Vec<_> = (0..5).map(|_| submit(&mut admission, "busy").unwrap()).collect();
    let rare = submit(&mut admission, "rare").unwrap();
    let mut order = Vec::new();
    while let Some(id) = admission.start_next() {
        admission.mark_ended(&id);
        order.push(id);
    }
    assert_eq!(order[1], rare, "the rare caller waits for one build of the busy one, not for five");
    order.remove(1);
    assert_eq!(order, busy);
}

#[test]
fn one_owner_leaves_half_of_the_queue_and_the_next_one_half_of_that() {
    let mut admission = BuildAdmission::new(limits(1, 8, 100));
    let mut accepted = |owner: &str| {
        let mut count = 0;
        let refused = loop {
            match submit(&mut admission, owner) {
                Ok(_) => count += 1,
                Err(deny) => break deny,
            }
            admission.start_next();
        };
        (count, matches!(refused, AdmissionError::QueueShare { .. }))
    };
    assert_eq!(accepted("greedy"), (1 + 4, true));
    assert_eq!(accepted("second"), (2, true));
    assert_eq!(accepted("third"), (1, true));
    assert_eq!(accepted("fourth"), (1, false));
}

#[test]
fn the_last_free_slot_is_for_an_owner_that_runs_nothing() {
    let mut admission = BuildAdmission::new(limits(4, 0, 100));
    let busy: Vec<_> = (0..3).map(|_| submit(&mut admission, "busy").unwrap()).collect();
    assert!(matches!(submit(&mut admission, "busy"), Err(AdmissionError::QueueFull { .. })));
    for id in &busy {
        assert_eq!(admission.start_next().as_ref(), Some(id));
    }
    let other = submit(&mut admission, "other").unwrap();
    assert!(matches!(submit(&mut admission, "third"), Err(AdmissionError::QueueFull { .. })));
    assert_eq!(admission.start_next(), Some(other));
    // It does not matter whose build ended: neither of the two owners that run something gets the freed slot.
    admission.mark_ended(&busy[0]);
    assert!(matches!(submit(&mut admission, "busy"), Err(AdmissionError::QueueFull { .. })));
    assert!(matches!(submit(&mut admission, "other"), Err(AdmissionError::QueueFull { .. })));
    let third = submit(&mut admission, "third").unwrap();
    assert_eq!(admission.start_next(), Some(third));
}

#[test]
fn who_runs_nothing_passes_the_builds_that_may_not_have_the_last_slot() {
    let mut admission = BuildAdmission::new(limits(2, 100, 100));
    let busy: Vec<_> = (0..3).map(|_| submit(&mut admission, "busy").unwrap()).collect();
    assert_eq!(admission.start_next().as_ref(), Some(&busy[0]));
    assert_eq!(admission.start_next(), None);
    let other = submit(&mut admission, "other").unwrap();
    assert_eq!(admission.start_next().as_ref(), Some(&other));
    admission.mark_ended(&busy[0]);
    assert_eq!(admission.start_next().as_ref(), Some(&busy[1]));
    admission.mark_ended(&other);
    assert_eq!(admission.start_next(), None);
}

#[derive(Clone, Debug)]
enum Step {
    Submit(u8),
    Next,
    End(usize),
    Withdraw(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0u8..4).prop_map(Step::Submit),
        3 => Just(Step::Next),
        2 => any::<usize>().prop_map(Step::End),
        1 => any::<usize>().prop_map(Step::Withdraw),
    ];
    proptest::collection::vec(step, 0..200)
}

proptest! {
    #[test]
    fn a_build_never_waits_for_those_of_a_single_other_owner(
        steps in steps(), concurrency in 2usize..6, queue in 1usize..8,
    ) {
        let mut admission = BuildAdmission::new(limits(concurrency, queue, usize::MAX));
        let mut running: Vec<BuildId> = Vec::new();
        let mut waiting: Vec<BuildId> = Vec::new();
        for step in steps {
            match step {
                Step::Submit(_) => waiting.extend(submit(&mut admission, "greedy")),
                Step::Next => running.extend(admission.start_next()),
                Step::End(n) => if !running.is_empty() {
                    admission.mark_ended(&running.remove(n % running.len()));
                },
                Step::Withdraw(n) => if !waiting.is_empty() {
                    admission.withdraw(&waiting[n % waiting.len()]);
                },
            }
        }
        let place = admission.reserve("other");
        prop_assert!(place.is_ok(), "{:?}", place);
        let (place, id) = (place.unwrap(), BuildId::random());
        admission.enqueue(place, id.clone());
        let mut started = Vec::new();
        while let Some(next) = admission.start_next() {
            started.push(next);
        }
        prop_assert!(started.contains(&id), "it waits");
    }

    #[test]
    fn an_owner_that_has_nothing_waiting_is_refused_only_when_many_others_wait(
        submitted in proptest::collection::vec((0u8..4, any::<bool>()), 0..400),
        concurrency in 1usize..4, queue in 16usize..64,
    ) {
        let mut admission = BuildAdmission::new(limits(concurrency, queue, usize::MAX));
        for (owner, runs) in submitted {
            let _ = submit(&mut admission, &format!("o{owner}"));
            if runs {
                admission.start_next();
            }
            // Four owners leave a 2^4th part of the queue, whatever they submit and however slots become free.
            prop_assert!(admission.waiting_count() < queue + concurrency);
            let place = admission.reserve("newcomer");
            prop_assert!(place.is_ok(), "{:?}", place);
            admission.release_reservation(place.unwrap());
        }
    }

    #[test]
    fn never_more_than_the_slots_run_and_a_caller_is_served_in_order(
        steps in steps(), concurrency in 1usize..4, queue in 0usize..8, per_caller in 1usize..6,
    ) {
        let mut admission = BuildAdmission::new(limits(concurrency, queue, per_caller));
        let mut expected: BTreeMap<String, VecDeque<BuildId>> = BTreeMap::new();
        let mut running: Vec<BuildId> = Vec::new();
        let mut owner: BTreeMap<BuildId, String> = BTreeMap::new();
        // Number of builds of others that started while a caller waited.
        let mut passed_over: BTreeMap<String, usize> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Submit(n) => {
                    let caller = format!("c{n}");
                    if let Ok(id) = submit(&mut admission, &caller) {
                        owner.insert(id.clone(), caller.clone());
                        expected.entry(caller).or_default().push_back(id);
                    }
                }
                Step::Next => if let Some(id) = admission.start_next() {
                    let caller = owner[&id].clone();
                    let first = expected.get_mut(&caller).and_then(VecDeque::pop_front);
                    prop_assert_eq!(first.as_ref(), Some(&id));
                    passed_over.remove(&caller);
                    for (other, queue) in &expected {
                        // A caller that runs something waits at most for its own builds.
                        if running.iter().any(|id| owner[id] == *other) {
                            passed_over.remove(other);
                        } else if *other != caller && !queue.is_empty() {
                            let count = passed_over.entry(other.clone()).or_default();
                            *count += 1;
                            prop_assert!(*count <= 4, "{other} starves");
                        }
                    }
                    running.push(id);
                    let own = running.iter().filter(|id| owner[*id] == caller).count();
                    prop_assert!(own < concurrency || concurrency == 1, "{caller} has all slots");
                } else if running.len() < concurrency {
                    let idle = concurrency - running.len();
                    for (caller, _) in expected.iter().filter(|(_, queue)| !queue.is_empty()) {
                        let runs = running.iter().any(|id| owner[id] == *caller);
                        prop_assert!(runs && idle == 1 && concurrency > 1, "{caller} waits beside a free slot");
                    }
                },
                Step::End(n) => if !running.is_empty() {
                    let id = running.remove(n % running.len());
                    admission.mark_ended(&id);
                },
                Step::Withdraw(n) => {
                    let all: Vec<_> = expected.values().flatten().cloned().collect();
                    if !all.is_empty() {
                        let id = &all[n % all.len()];
                        prop_assert!(admission.withdraw(id));
                        prop_assert!(!admission.withdraw(id));
                        if let Some(queue) = expected.get_mut(&owner[id]) {
                            queue.retain(|queued| queued != id);
                        }
                        if expected[&owner[id]].is_empty() { passed_over.remove(&owner[id]); }
                    }
                }
            }
            prop_assert!(admission.running_count() <= concurrency);
            prop_assert_eq!(admission.running_count(), running.len());
            prop_assert_eq!(admission.waiting_count(), expected.values().map(VecDeque::len).sum::<usize>());
            prop_assert!(admission.is_sound());
        }
    }
}

#[test]
fn a_waiting_build_has_a_place_and_a_reason() {
    let mut admission = BuildAdmission::new(limits(2, 20, 10));
    let ids: Vec<BuildId> = ["a", "a", "a", "b", "c", "a", "c"]
        .iter()
        .map(|caller| submit(&mut admission, caller).unwrap())
        .collect();
    let place = |admission: &BuildAdmission, id: &BuildId| admission.place(id);
    assert_eq!(admission.start_next(), Some(ids[0].clone()));
    assert_eq!(place(&admission, &ids[0]), None);
    assert_eq!(admission.place(&ids[1]).unwrap().wait, QueueWait::LastSlot);
    assert_eq!(admission.start_next(), Some(ids[3].clone()));
    let full = QueueWait::Slots { running: 2, slots: 2 };
    assert_eq!(full.to_string(), "2 of 2 builds run");
    let mut places: Vec<usize> = [1, 2, 4, 5, 6]
        .iter()
        .map(|id| {
            let QueuePlace { ahead, running, wait } = admission.place(&ids[*id]).unwrap();
            assert_eq!((wait, running.len()), (full, 2));
            ahead.len()
        })
        .collect();
    places.sort_unstable();
    assert_eq!(places, [0, 1, 2, 3, 4], "each build has a place of its own");
    admission.drain();
    assert_eq!(admission.place(&ids[1]).unwrap().wait, QueueWait::Draining);
}
