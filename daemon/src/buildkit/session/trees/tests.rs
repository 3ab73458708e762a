use super::*;
use crate::context::{FileTree, MemoryTree};

fn name(id: &str) -> SessionName {
    SessionName { id: id.to_owned(), shared_key: String::new() }
}

fn source(tree: &Arc<MemoryTree>) -> TreeSource {
    TreeSource { tree: Arc::clone(tree) as Arc<dyn FileTree>, watch: Arc::new(NoTransferWatch) }
}

fn tree() -> Arc<MemoryTree> {
    Arc::new(MemoryTree::new(vec![("a".to_owned(), b"1".to_vec())]))
}

fn sessions() -> Arc<TreeSessions> {
    Arc::new(TreeSessions::new("unix:///nobody/listens/here".parse().unwrap()))
}

fn lease(sessions: &Arc<TreeSessions>) -> TreeLease {
    TreeLease { sessions: Arc::clone(sessions), ids: Vec::new() }
}

#[tokio::test]
async fn a_tree_goes_with_the_last_build_that_uses_it_and_its_session_stays() {
    let (sessions, tree) = (sessions(), tree());
    let (mut one, mut two) = (lease(&sessions), lease(&sessions));
    drop(one.lease_slot(&name("a"), "context", source(&tree)));
    drop(two.lease_slot(&name("a"), "context", source(&tree)));
    drop(one);
    assert_eq!(Arc::strong_count(&tree), 2);
    drop(two);
    assert_eq!(Arc::strong_count(&tree), 1);
    assert_eq!(sessions.state.lock().slots.keys().collect::<Vec<_>>(), ["a"]);
}

#[tokio::test]
async fn the_next_build_brings_the_tree_to_the_session_that_stayed() {
    let (sessions, first, second) = (sessions(), tree(), tree());
    let mut build = lease(&sessions);
    let (before, _) = build.lease_slot(&name("a"), "context", source(&first));
    drop(build);
    let mut build = lease(&sessions);
    let (after, served) = build.lease_slot(&name("a"), "context", source(&second));
    assert!(Arc::ptr_eq(&before, &after));
    assert_eq!((Arc::strong_count(&first), Arc::strong_count(&second)), (1, 2));
    assert!(served.replace(None).is_some());
}

#[tokio::test]
async fn of_many_idle_sessions_the_latest_stay() {
    let sessions = sessions();
    for number in 0..MAX_IDLE + 3 {
        let mut build = lease(&sessions);
        drop(build.lease_slot(&name(&number.to_string()), "context", source(&tree())));
    }
    let state = sessions.state.lock();
    assert_eq!((state.slots.len(), state.closed.len()), (MAX_IDLE, 3));
    assert!((3..MAX_IDLE + 3).all(|number| state.slots.contains_key(&number.to_string())));
}
