//! Hundreds of random histories (`UNION_CASES` sets their number), without a mount.

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::Place;
use super::core::Core;
use super::disk::Disk;
use super::memory::Memory;
use super::operation::{Operation, Target, anything, making};

const CASES: u32 = 400;

fn case(lower: &[Operation], history: &[Operation]) -> Result<(), TestCaseError> {
    let place = Place::new();
    let mut memory = Memory::new();
    let mut below = Disk::new(place.lower());
    for operation in lower {
        let outcome = below.apply(operation);
        prop_assert_eq!(memory.apply(operation), outcome, "in the lower: {:?}", operation);
    }
    let untouched = below.tree();
    prop_assert_eq!(memory.tree(), untouched.clone());
    let mut core = Core::new(&place);
    prop_assert_eq!(core.tree(), memory.tree());
    for operation in history {
        let (expected, found) = (memory.apply(operation), core.apply(operation));
        prop_assert_eq!(&found, &expected, "{:?}", operation);
        if found.is_ok() {
            prop_assert_eq!(core.tree(), memory.tree(), "after {:?}", operation);
        }
    }
    prop_assert_eq!(core.tree(), memory.tree());
    prop_assert_eq!(below.tree(), untouched, "the lower was changed");
    core.close();
    Ok(())
}

#[test]
fn random_histories_end_as_in_the_model() {
    let cases = std::env::var("UNION_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(CASES);
    let config = ProptestConfig {
        cases,
        max_shrink_iters: 2000,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let strategy = (prop::collection::vec(making(), 0..20), prop::collection::vec(anything(), 1..30));
    TestRunner::new(config).run(&strategy, |(lower, history)| case(&lower, &history)).unwrap();
}
