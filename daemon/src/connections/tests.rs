use super::*;

const LIMITS: ConnectionLimits = ConnectionLimits {
    total: 6,
    per_peer: 3,
    unadmitted_timeout: Duration::from_secs(10),
    idle_timeout: Duration::from_secs(300),
};

fn peer(last: u8) -> ConnectionPeer {
    ConnectionPeer::of(IpAddr::from([10, 0, 0, last]))
}

fn open(connections: &ConnectionLimiter, from: u8) -> ConnectionPermit {
    connections.admit(peer(from), &CancellationToken::new()).unwrap()
}

/// Uses a connection for an admitted request.
fn known(held: &ConnectionPermit) -> ActiveRequest {
    held.usage().mark_admitted();
    held.usage().begin()
}

fn is_closing(held: &ConnectionPermit) -> bool {
    held.closing().is_cancelled()
}

#[test]
fn a_peer_at_its_share_gives_its_own_longest_unused_connection_for_a_new_one() {
    let connections = ConnectionLimiter::new(LIMITS);
    let other = open(&connections, 2);
    let own: Vec<_> = (0..3).map(|_| open(&connections, 1)).collect();
    let newest = open(&connections, 1);
    assert!(is_closing(&own[0]) && !is_closing(&own[1]) && !is_closing(&newest) && !is_closing(&other));
}

#[test]
fn a_full_table_takes_from_the_peer_that_holds_most() {
    let connections = ConnectionLimiter::new(LIMITS);
    let modest = open(&connections, 3);
    let (few, many): (Vec<_>, Vec<_>) =
        ((0..2).map(|_| open(&connections, 2)).collect(), (0..3).map(|_| open(&connections, 1)).collect());
    let newcomer = open(&connections, 4);
    assert!(is_closing(&many[0]) && !is_closing(&newcomer));
    assert!(few.iter().chain([&modest]).all(|held| !is_closing(held)));
    // The other peers have one or two connections each. A peer with as many as the largest peer loses one of its own.
    let third = open(&connections, 2);
    assert!(is_closing(&few[0]) && !is_closing(&third) && !is_closing(&modest));
}

#[test]
fn connections_in_use_by_known_callers_stay_and_a_newcomer_is_then_refused() {
    let connections = ConnectionLimiter::new(ConnectionLimits { total: 2, per_peer: 2, ..LIMITS });
    let held: Vec<_> = (1..=2).map(|from| open(&connections, from)).collect();
    let used: Vec<_> = held.iter().map(known).collect();
    let refused = connections.admit(peer(3), &CancellationToken::new());
    assert_eq!(refused.err(), Some(ConnectionLimitReached::All { limit: 2 }));
    drop(used);
    let newcomer = open(&connections, 3);
    assert!(held.iter().any(is_closing) && !is_closing(&newcomer));
}

#[test]
fn a_request_of_nobody_that_is_known_does_not_keep_a_place() {
    let connections = ConnectionLimiter::new(ConnectionLimits { total: 1, per_peer: 1, ..LIMITS });
    let held = open(&connections, 1);
    let _watch = held.usage().begin();
    let newcomer = open(&connections, 2);
    assert!(is_closing(&held) && !is_closing(&newcomer));
}

#[test]
fn an_own_share_in_use_refuses_its_own_peer_and_nobody_else() {
    let connections = ConnectionLimiter::new(LIMITS);
    let held: Vec<_> = (0..3).map(|_| open(&connections, 1)).collect();
    let _used: Vec<_> = held.iter().map(known).collect();
    assert_eq!(
        connections.admit(peer(1), &CancellationToken::new()).err(),
        Some(ConnectionLimitReached::Peer { limit: 3 })
    );
    open(&connections, 2);
}

#[test]
fn a_proxy_has_no_share_and_a_network_of_ipv6_is_one_peer() {
    let connections = ConnectionLimiter::new(LIMITS);
    let proxy = ConnectionPeer::Proxy(IpAddr::from([10, 0, 0, 1]));
    let all: Vec<_> = (0..6).map(|_| connections.admit(proxy, &CancellationToken::new()).unwrap()).collect();
    assert!(all.iter().all(|held| !is_closing(held)));
    let of = |text: &str| ConnectionPeer::of(text.parse().unwrap());
    assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
    assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
    assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
}

#[test]
fn what_nobody_uses_is_closed_and_what_is_in_use_is_not() {
    let connections =
        ConnectionLimiter::new(ConnectionLimits { unadmitted_timeout: Duration::ZERO, ..LIMITS });
    let (silent, served, busy) = (open(&connections, 1), open(&connections, 2), open(&connections, 3));
    drop(known(&served));
    let _busy = busy.usage().begin();
    connections.sweep();
    assert!(is_closing(&silent) && !is_closing(&served) && !is_closing(&busy));
}

#[tokio::test]
async fn slots_are_free_again_and_the_end_of_the_last_connection_is_signalled() {
    let connections = ConnectionLimiter::new(ConnectionLimits { total: 1, per_peer: 1, ..LIMITS });
    for _ in 0..200 {
        let held = open(&connections, 1);
        // The connection makes room for the next one, and is closed afterwards.
        let next = open(&connections, 2);
        assert_eq!(connections.count(), 2);
        drop(held);
        drop(next);
    }
    let held = open(&connections, 1);
    let ended = connections.clone();
    let waiting = crate::task::spawn("all ended", async move { ended.all_closed().await });
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    drop(held);
    waiting.await.unwrap();
}

#[tokio::test]
async fn a_burst_that_is_closed_faster_than_it_ends_waits_and_is_not_refused() {
    let connections = ConnectionLimiter::new(ConnectionLimits { total: 100, per_peer: 100, ..LIMITS });
    let stop = CancellationToken::new();
    let mut silent: Vec<_> = (0..164).map(|_| open(&connections, 1)).collect();
    assert_eq!(connections.admit(peer(2), &stop).err(), Some(ConnectionLimitReached::Closing { limit: 64 }));
    // None of them closes in time.
    let refused = connections.admit_within(Duration::from_millis(50), peer(2), &stop).await;
    assert_eq!(refused.err(), Some(ConnectionLimitReached::Closing { limit: 64 }));
    let limit = Duration::from_secs(60);
    let (late, waits) = (connections.clone(), stop.clone());
    let late = crate::task::spawn("late", async move { late.admit_within(limit, peer(2), &waits).await });
    tokio::task::yield_now().await;
    assert!(!late.is_finished());
    drop(silent.remove(0));
    assert!(late.await.unwrap().is_ok());
}
