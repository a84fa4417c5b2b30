//! Hosts that speak as the RFCs say, and what the router side makes of it.

use std::net::IpAddr;

use proptest::prelude::*;

use super::*;

const OWN: &str = "192.0.2.100";
const MS: Duration = Duration::from_millis(1);

fn addr(text: &str) -> Addr {
    text.parse::<IpAddr>().unwrap().into()
}

fn addrs(all: &[&str]) -> Vec<Addr> {
    all.iter().map(|text| addr(text)).collect()
}

/// A port whose router this unit is, and a clock.
struct Port {
    membership: Membership,
    now: Time,
    asked: Vec<Query>,
}

impl Port {
    fn new() -> Port {
        let mut membership = Membership::new(Family::V4);
        let now = Time::from_nanos(1_000_000_000);
        membership.start(now);
        Port {
            membership,
            now,
            asked: vec![],
        }
    }

    fn hear(&mut self, from: &str, version: Version, message: Message) -> Result<(), DropReason> {
        let received = Received {
            from: addr(from),
            to: addr("224.0.0.22"),
            version,
            message,
        };
        self.membership.handle(self.now, addr(OWN), &received)
    }

    fn report(&mut self, from: &str, kind: RecordKind, group: &str, sources: &[&str]) {
        let record = Record {
            kind,
            group: addr(group),
            sources: addrs(sources),
        };
        self.hear(from, Version::Sources, Message::Report(vec![record]))
            .unwrap();
    }

    fn wants(&self, source: &str, group: &str) -> bool {
        self.membership.wants(&addr(source), &addr(group))
    }

    /// Lets `time` pass.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.membership.poll_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.membership.handle_timeout(self.now);
            self.asked
                .extend(std::iter::from_fn(|| self.membership.poll_query()));
            self.membership.check_invariants();
        }
        self.now = end;
    }
}

const G: &str = "239.1.1.1";
const S: &str = "198.51.100.1";
const TTL: Duration = Duration::from_secs(600);
const T: &str = "198.51.100.2";

#[test]
fn a_host_that_leaves_is_no_member_within_a_second() {
    let mut port = Port::new();
    port.report("192.0.2.1", RecordKind::ToExclude, G, &[]);
    assert!(port.wants(S, G) && !port.wants(S, "239.1.1.2"));
    assert_eq!(port.membership.poll_changed(), Some(addr(G)));
    port.pass(30 * MS);
    port.asked.clear();
    port.report("192.0.2.1", RecordKind::ToInclude, G, &[]);
    assert!(port.wants(S, G), "others may want it");
    port.pass(999 * MS);
    assert!(!port.wants(S, G));
    assert_eq!(port.membership.poll_changed(), Some(addr(G)));
    let about: Vec<_> = port.asked.iter().map(|query| query.group).collect();
    assert_eq!(about, [Some(addr(G)); 2], "asked twice");
    assert_eq!(port.membership.count(), (0, 0));
}

#[test]
fn a_group_stays_while_another_host_answers() {
    let mut port = Port::new();
    for host in ["192.0.2.1", "192.0.2.2"] {
        port.report(host, RecordKind::ToExclude, G, &[]);
    }
    port.report("192.0.2.1", RecordKind::ToInclude, G, &[]);
    port.pass(300 * MS);
    port.report("192.0.2.2", RecordKind::IsExclude, G, &[]);
    port.pass(MEMBERSHIP - 1000 * MS);
    assert!(port.wants(S, G));
    port.pass(2000 * MS);
    assert!(!port.wants(S, G), "nobody has answered for long");
}

#[test]
fn sources_are_wanted_and_left_one_by_one() {
    let mut port = Port::new();
    port.report("192.0.2.1", RecordKind::Allow, G, &[S, T]);
    assert!(port.wants(S, G) && port.wants(T, G) && !port.wants("198.51.100.9", G));
    port.report("192.0.2.1", RecordKind::Block, G, &[S]);
    port.pass(999 * MS);
    assert!(!port.wants(S, G) && port.wants(T, G));
    port.report("192.0.2.2", RecordKind::ToExclude, G, &[T]);
    assert!(
        port.wants(S, G) && port.wants(T, G),
        "the first host wants T"
    );
    port.pass(999 * MS);
    assert!(!port.wants(T, G), "it did not answer");
    let wanted = Wanted {
        excludes: true,
        sources: addrs(&[T]),
    };
    assert_eq!(port.membership.wanted(&addr(G)), Some(wanted));
}

#[test]
fn a_host_of_an_older_version_is_heard() {
    let mut port = Port::new();
    let old = |kind| {
        let record = Record {
            kind,
            group: addr(G),
            sources: vec![],
        };
        Message::Report(vec![record])
    };
    port.hear("192.0.2.1", Version::Groups, old(RecordKind::IsExclude))
        .unwrap();
    assert!(port.wants(S, G));
    port.report("192.0.2.2", RecordKind::Block, G, &[S]);
    port.pass(999 * MS);
    assert!(port.wants(S, G), "the old host can't say that it wants S");
    port.hear("192.0.2.1", Version::Groups, old(RecordKind::ToInclude))
        .unwrap();
    port.pass(999 * MS);
    assert!(!port.wants(S, G));

    port.hear("192.0.2.3", Version::JoinOnly, old(RecordKind::IsExclude))
        .unwrap();
    port.report("192.0.2.2", RecordKind::ToInclude, G, &[]);
    port.pass(999 * MS);
    assert!(port.wants(S, G), "the oldest hosts don't answer in time");
}

#[test]
fn groups_that_no_router_forwards_are_not_kept() {
    let mut port = Port::new();
    for group in ["224.0.0.251", "232.1.1.1"] {
        port.report("192.0.2.1", RecordKind::ToExclude, group, &[]);
        assert!(!port.wants(S, group));
    }
    port.report("192.0.2.1", RecordKind::Allow, "232.1.1.1", &[S]);
    assert!(port.wants(S, "232.1.1.1") && !port.wants(T, "232.1.1.1"));
}

#[test]
fn the_router_with_the_lowest_address_asks() {
    let mut port = Port::new();
    port.pass(60_000 * MS);
    assert_eq!(port.asked.len(), 3, "fast at first");
    let general = || query(None, vec![], QUERY_RESPONSE);
    let ask = |port: &mut Port, from: &str| {
        port.hear(from, Version::Sources, Message::Query(general()))
            .unwrap();
    };
    ask(&mut port, "192.0.2.200");
    assert!(port.membership.is_querier(), "ours is lower");
    ask(&mut port, "0.0.0.0");
    assert!(port.membership.is_querier(), "a switch is no router");
    ask(&mut port, "192.0.2.7");
    assert!(!port.membership.is_querier());
    port.asked.clear();
    port.report("192.0.2.1", RecordKind::ToExclude, G, &[]);
    port.report("192.0.2.1", RecordKind::ToInclude, G, &[]);
    port.pass(200_000 * MS);
    assert!(port.asked.is_empty() && port.wants(S, G), "the other asks");
    port.hear("192.0.2.7", Version::Sources, {
        Message::Query(query(Some(addr(G)), vec![], LAST_MEMBER))
    })
    .unwrap();
    port.pass(999 * MS);
    assert!(!port.wants(S, G), "nobody answered the other");
    port.pass(OTHER_QUERIER);
    assert!(port.membership.is_querier(), "the other is gone");
    assert_eq!(port.asked.len(), 1);
}

#[test]
fn a_new_router_forwards_at_once_and_asks() {
    let mut port = Port::new();
    port.membership.stop();
    let all = Wanted {
        excludes: true,
        sources: addrs(&[T]),
    };
    let some = Wanted {
        excludes: false,
        sources: addrs(&[S]),
    };
    port.membership.install(port.now, addr(G), Some(&all), TTL);
    port.membership
        .install(port.now, addr("239.1.1.2"), Some(&some), TTL);
    port.membership
        .install(port.now, addr("239.1.1.3"), Some(&some), TTL);
    port.membership
        .install(port.now, addr("239.1.1.3"), None, TTL);
    port.now = port.now + Duration::from_secs(500);
    port.membership.start(port.now);
    port.pass(MS);
    assert_eq!(port.asked.len(), 1, "at once");
    assert!(port.wants(S, G) && !port.wants(T, G) && port.wants(S, "239.1.1.2"));
    assert!(!port.wants(S, "239.1.1.3"));
    port.report("192.0.2.1", RecordKind::IsExclude, G, &[]);
    port.pass(LEASE + MS);
    assert!(
        port.wants(S, G) && !port.wants(S, "239.1.1.2"),
        "who did not answer is gone"
    );
    port.membership.stop();
    port.membership.install(port.now, addr(G), Some(&all), TTL);
    port.pass(TTL - MS);
    assert!(port.wants(S, G));
    port.pass(1000 * MS);
    assert!(!port.wants(S, G), "it was not told again");
    assert_eq!(port.asked.len(), 3, "a standby asks nothing");
    assert_eq!(port.membership.count(), (0, 0));
}

#[test]
fn what_hosts_can_make_it_remember_is_bounded() {
    let mut port = Port::new();
    let report = |group: u32, sources: Vec<Addr>| {
        let [_, b, c, d] = group.to_be_bytes();
        let record = Record {
            kind: RecordKind::Allow,
            group: Addr::v4([239, b, c, d]),
            sources,
        };
        Message::Report(vec![record])
    };
    let mut refused = BTreeSet::new();
    for group in 0..6000_u32 {
        let host = format!("192.0.2.{}", 1 + group / 600);
        let result = port.hear(&host, Version::Sources, report(group, vec![addr(S)]));
        refused.extend(result.err());
    }
    let sources = |from: u8| {
        (0..129)
            .map(|n| Addr::v4([10, from, 0, n]))
            .collect::<Vec<_>>()
    };
    refused.extend(
        port.hear("192.0.2.1", Version::Sources, report(1, sources(1)))
            .err(),
    );
    let reasons = [
        DropReason::MembershipGroups,
        DropReason::MembershipSources,
        DropReason::MembershipHost,
    ];
    assert_eq!(refused.into_iter().collect::<Vec<_>>(), reasons);
    for group in 0..100 {
        let mut half = sources(group as u8);
        half.truncate(100);
        let _ = port.hear("192.0.2.1", Version::Sources, report(group, half));
    }
    port.membership.check_invariants();
    port.pass(MEMBERSHIP + 1000 * MS);
    assert_eq!(port.membership.count(), (0, 0), "all of it ends");
}

/// What a host wants of the group: all but these sources, or these.
#[derive(Clone, Debug)]
struct Host {
    excludes: bool,
    sources: BTreeSet<u8>,
}

impl Host {
    fn wants(&self, source: u8) -> bool {
        self.sources.contains(&source) != self.excludes
    }

    /// The reports of a change (RFC 9776, section 5.1).
    fn change(&self, to: &Host) -> Vec<(RecordKind, BTreeSet<u8>)> {
        let without = |a: &BTreeSet<u8>, b: &BTreeSet<u8>| a - b;
        match (self.excludes, to.excludes) {
            (false, false) => vec![
                (RecordKind::Allow, without(&to.sources, &self.sources)),
                (RecordKind::Block, without(&self.sources, &to.sources)),
            ],
            (true, true) => vec![
                (RecordKind::Allow, without(&self.sources, &to.sources)),
                (RecordKind::Block, without(&to.sources, &self.sources)),
            ],
            (_, true) => vec![(RecordKind::ToExclude, to.sources.clone())],
            (_, false) => vec![(RecordKind::ToInclude, to.sources.clone())],
        }
    }

    /// The answer to a question (section 5.2).
    fn answer(&self, asked: &BTreeSet<u8>) -> (RecordKind, BTreeSet<u8>) {
        match (asked.is_empty(), self.excludes) {
            (true, true) => (RecordKind::IsExclude, self.sources.clone()),
            (true, false) => (RecordKind::IsInclude, self.sources.clone()),
            (false, true) => (RecordKind::IsInclude, asked - &self.sources),
            (false, false) => (RecordKind::IsInclude, asked & &self.sources),
        }
    }
}

fn source(number: u8) -> Addr {
    Addr::v4([198, 51, 100, number])
}

fn host_report((kind, sources): (RecordKind, BTreeSet<u8>)) -> Message {
    let record = Record {
        kind,
        group: addr(G),
        sources: sources.into_iter().map(source).collect(),
    };
    Message::Report(vec![record])
}

proptest! {
    /// A second after each change, the router knows what some host wants, and nothing else.
    #[test]
    fn it_knows_what_hosts_want(
        changes in proptest::collection::vec(
            (0usize..3, any::<bool>(), proptest::collection::btree_set(0u8..6, 0..5)),
            1..30,
        ),
    ) {
        let mut port = Port::new();
        let nothing = Host { excludes: false, sources: BTreeSet::new() };
        let mut hosts = vec![nothing; 3];
        for (at, excludes, sources) in changes {
            let new = Host { excludes, sources };
            let from = format!("192.0.2.{}", at + 1);
            for report in hosts[at].change(&new) {
                port.hear(&from, Version::Sources, host_report(report)).unwrap();
            }
            hosts[at] = new;
            for _ in 0..10 {
                port.pass(99 * MS);
                for query in std::mem::take(&mut port.asked) {
                    let asked = query.sources.iter().map(|source| source.last4()[3]).collect();
                    for (number, host) in hosts.iter().enumerate() {
                        let from = format!("192.0.2.{}", number + 1);
                        let answer = host_report(host.answer(&asked));
                        port.hear(&from, Version::Sources, answer).unwrap();
                    }
                }
            }
            for number in 0..6 {
                let wanted = hosts.iter().any(|host| host.wants(number));
                // While a host wants all but some sources, the timer of one of those runs on that
                // another host wanted before (RFC 9776, section 6.4.1: `(A-X-Y)=GMI`).
                let may_last = hosts.iter().any(|host| host.excludes);
                let known = port.membership.wants(&source(number), &addr(G));
                let is_right = known == wanted || (known && may_last);
                prop_assert!(is_right, "source {} of {:?}", number, hosts);
            }
        }
    }

    /// Whatever hosts and routers say, the books are right, and without answers all of it ends.
    #[test]
    fn whatever_comes_is_counted_and_ends(
        steps in proptest::collection::vec(
            (1u8..4, 0usize..8, 1u8..4, proptest::collection::vec(0u8..6, 0..4), 0u64..900, 1u8..4),
            0..60,
        ),
    ) {
        const KINDS: [RecordKind; 6] = [
            RecordKind::IsInclude,
            RecordKind::IsExclude,
            RecordKind::ToInclude,
            RecordKind::ToExclude,
            RecordKind::Allow,
            RecordKind::Block,
        ];
        let mut port = Port::new();
        for (host, kind, group, sources, wait, version) in steps {
            let version = [Version::JoinOnly, Version::Groups, Version::Sources]
                [usize::from(version) - 1];
            let group = Addr::v4([239, 1, 1, group]);
            let sources: Vec<Addr> = sources.into_iter().map(source).collect();
            let message = match KINDS.get(kind) {
                Some(kind) => Message::Report(vec![Record { kind: *kind, group, sources }]),
                None => Message::Query(query(Some(group), sources, LAST_MEMBER)),
            };
            let _ = port.hear(&format!("192.0.2.{host}"), version, message);
            port.membership.check_invariants();
            port.pass(Duration::from_millis(wait));
        }
        port.pass(2 * MEMBERSHIP);
        prop_assert_eq!(port.membership.count(), (0, 0));
    }
}

/// The sources count against a bound, so each counts once.
#[test]
fn a_source_that_a_peer_names_twice_counts_once() {
    let mut port = Port::new();
    let twice = Wanted {
        excludes: false,
        sources: addrs(&[S, T, S, S]),
    };
    for _ in 0..3 {
        port.membership
            .install(port.now, addr(G), Some(&twice), TTL);
        assert_eq!(port.membership.count(), (1, 2));
        port.membership.check_invariants();
    }
    port.membership.install(port.now, addr(G), None, TTL);
    assert_eq!(port.membership.count(), (0, 0));
}
