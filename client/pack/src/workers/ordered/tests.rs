use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::*;

#[test]
fn results_come_in_order_and_none_is_lost() {
    for threads in [1, 2, 7] {
        let mut taken = Vec::new();
        let worker = || {
            |number: u64| {
                std::thread::sleep(Duration::from_micros(number * 7919 % 300));
                number * 2
            }
        };
        run_ordered(threads, 0..500, worker, |result| {
            taken.push(result);
            Ok::<_, ()>(())
        })
        .unwrap();
        assert!(taken.iter().copied().eq((0..500).map(|number| number * 2)));
    }
}

#[test]
fn no_work_runs_further_ahead_than_the_window() {
    let (begun, mut taken) = (AtomicU64::new(0), 0);
    let worker = || |number: u64| begun.fetch_max(number, Ordering::SeqCst);
    run_ordered(2, 0..100, worker, |_| {
        std::thread::sleep(Duration::from_millis(1));
        taken += 1;
        assert!(begun.load(Ordering::SeqCst) <= taken + 4 + EXTRA_RESULTS as u64);
        Ok::<_, ()>(())
    })
    .unwrap();
}

#[test]
fn the_first_failure_in_order_ends_the_work() {
    let begun = AtomicU64::new(0);
    let worker = || {
        |number: u64| {
            begun.fetch_add(1, Ordering::SeqCst);
            if number.is_multiple_of(10) && number > 0 { Err(number) } else { Ok(()) }
        }
    };
    assert_eq!(run_ordered(4, 0..1_000_000, worker, |result| result), Err(10));
    assert!(begun.load(Ordering::SeqCst) < 40);
}

#[test]
fn a_worker_that_panics_hangs_nobody() {
    let ended = std::panic::catch_unwind(|| {
        run_ordered(3, 0..100, || |number: u64| assert_ne!(number, 50), |()| Ok::<_, ()>(()))
    });
    assert!(ended.is_err());
}
