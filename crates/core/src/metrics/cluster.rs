//! Roles, peers, replication and heartbeats. Without `[ha]` there are only the groups.

use std::fmt::Display;

use crate::flow::{GroupId, PeerId};
use crate::gateway::{Cluster, Gateway, Role};
use crate::ha::{HeartbeatError, LinkView, Takeover, WitnessState};

use super::page::Page;
use super::{Metric, View, catalog};

pub(super) fn groups(view: &View<'_>, page: &mut Page<'_>) {
    let gateway = view.gateway;
    let seen = |group| gateway.cluster()?.ha().group(view.now, group);
    let mut each = |metric, value: &dyn Fn(GroupId) -> u64| {
        let mut samples = page.begin(metric);
        for group in gateway.groups() {
            samples.add(&[gateway.group_name(group)], value(group));
        }
    };
    each(&catalog::GROUP_PRIMARY, &|group| {
        u64::from(gateway.role_of(group) == Role::Primary)
    });
    each(&catalog::GROUP_READY, &|group| {
        seen(group).map_or(1, |group| u64::from(group.ready))
    });
    each(&catalog::GROUP_HOLDER, &|group| {
        seen(group).map_or(1, |group| u64::from(group.holder))
    });
    each(&catalog::GROUP_DEGRADED, &|group| {
        seen(group).map_or(0, |group| u64::from(group.degraded))
    });
    each(&catalog::GROUP_TERM, &|group| {
        seen(group).map_or(0, |group| group.term)
    });
    let mut takeovers = page.begin(&catalog::TAKEOVERS);
    for group in gateway.groups() {
        let counts = seen(group).map(|group| group.takeovers).unwrap_or_default();
        for (reason, count) in Takeover::ALL.iter().zip(counts) {
            takeovers.add(&[gateway.group_name(group), reason.name()], count);
        }
    }
}

pub(super) fn peers(view: &View<'_>, page: &mut Page<'_>) {
    let (gateway, now) = (view.gateway, view.now);
    let mut each = |metric, value: &dyn Fn(PeerId) -> bool| {
        each_peer(gateway, page, metric, |peer, _| u8::from(value(peer)));
    };
    each(&catalog::PEER_CONNECTED, &|peer| {
        gateway.peer_state(now, peer).connected
    });
    each(&catalog::PEER_IN_SYNC, &|peer| {
        gateway.peer_state(now, peer).in_sync
    });
    if gateway.cluster().is_none() {
        return;
    }
    let mut each_known = |metric, value: &dyn Fn(PeerId) -> Option<bool>| {
        let mut samples = page.begin(metric);
        for peer in gateway.peers() {
            if let Some(value) = value(peer) {
                samples.add(&[gateway.peer_name(peer)], u8::from(value));
            }
        }
    };
    each_known(&catalog::PEER_DIGEST_EQUAL, &|peer| {
        gateway.peer_state(now, peer).digest_equal
    });
    each_known(&catalog::PEER_CONFIG_EQUAL, &|peer| {
        let about = gateway.cluster()?.sync().about(peer)?;
        Some(about.is_equal())
    });
}

pub(super) fn witness(view: &View<'_>, page: &mut Page<'_>) {
    let Some(witness) = view.gateway.witness() else {
        return;
    };
    let answers = witness.state == WitnessState::Answers;
    page.one(&catalog::WITNESS_UP, u8::from(answers));
    let results = witness.results;
    let mut decisions = page.begin(&catalog::WITNESS_DECISIONS);
    decisions.add(&["granted"], results.granted);
    decisions.add(&["refused"], results.refused);
    decisions.add(&["without"], results.without);
}

pub(super) fn replication(view: &View<'_>, page: &mut Page<'_>) {
    let (gateway, now) = (view.gateway, view.now);
    each_peer(gateway, page, &catalog::LAG_CHANGES, |peer, _| {
        gateway.backlog(peer, now).0
    });
    each_peer(gateway, page, &catalog::LAG_AGE, |peer, _| {
        gateway.backlog(peer, now).1.as_secs_f64()
    });
    each_peer(gateway, page, &catalog::CHANGES_SENT, |peer, cluster| {
        cluster.sync().traffic(peer).changes_sent
    });
    each_peer(
        gateway,
        page,
        &catalog::CHANGES_RECEIVED,
        |peer, cluster| cluster.sync().traffic(peer).changes_received,
    );
    each_peer(gateway, page, &catalog::SYNC_BYTES_SENT, |peer, cluster| {
        cluster.sync().traffic(peer).bytes_sent
    });
    each_peer(
        gateway,
        page,
        &catalog::SYNC_BYTES_RECEIVED,
        |peer, cluster| cluster.sync().traffic(peer).bytes_received,
    );
    let Some(sync) = gateway.cluster().map(|it| it.sync().counters()) else {
        return;
    };
    let mut refused = page.begin(&catalog::REFUSED);
    refused.add(&["unknown-name"], sync.refused_unknown);
    refused.add(&["table-full"], sync.refused_full);
    refused.add(&["not-primary"], sync.refused_not_primary);
    refused.add(&["conflict"], sync.conflicts_won);
    refused.add(&["stale"], sync.stale);
    let counters = gateway.counters();
    let mut guarantee = page.begin(&catalog::GUARANTEE);
    guarantee.add(&["held"], counters.guarantee_held);
    guarantee.add(&["expired"], counters.guarantee_expired);
    guarantee.add(&["degraded"], counters.guarantee_degraded);
    let mut asymmetric = page.begin(&catalog::ASYMMETRIC);
    asymmetric.add(&["stood-in"], counters.stood_in);
    asymmetric.add(&["passed-on"], counters.passed_on);
    asymmetric.add(&["received"], counters.received_from_peers);
}

pub(super) fn links(view: &View<'_>, page: &mut Page<'_>) {
    if let Some(refused) = &view.shell.refused {
        page.one(&catalog::HANDSHAKES_LIMITED, refused.handshakes_limited);
        page.one(&catalog::HANDSHAKES_FAILED, refused.handshakes_failed);
        page.one(&catalog::FOREIGN_DATAGRAMS, refused.foreign_datagrams);
    }
    each_link(view, page, &catalog::LINK_UP, |link| {
        Some(f64::from(u8::from(link.connected && link.alive)))
    });
    each_link(view, page, &catalog::RTT, |link| {
        link.rtt.map(|rtt| rtt.as_secs_f64())
    });
    each_link(view, page, &catalog::HEARTBEATS_SENT, |link| {
        Some(link.heartbeats.sent)
    });
    each_link(view, page, &catalog::HEARTBEATS_RECEIVED, |link| {
        Some(link.heartbeats.received)
    });
    each_link(view, page, &catalog::HEARTBEATS_LOST, |link| {
        Some(link.heartbeats.lost)
    });
    let Some(cluster) = view.gateway.cluster() else {
        return;
    };
    let mut rejected = page.begin(&catalog::HEARTBEATS_REJECTED);
    for error in HeartbeatError::ALL {
        rejected.add(&[error.name()], cluster.ha().rejected(error));
    }
}

/// A metric with a sample for each peer.
fn each_peer<T: Display>(
    gateway: &Gateway,
    page: &mut Page<'_>,
    metric: &'static Metric,
    value: impl Fn(PeerId, &Cluster) -> T,
) {
    let Some(cluster) = gateway.cluster() else {
        return;
    };
    let mut samples = page.begin(metric);
    for peer in gateway.peers() {
        samples.add(&[gateway.peer_name(peer)], value(peer, cluster));
    }
}

/// A metric with a sample for each link to each peer. A link is named by its own address, as in the
/// status: an interface may have several.
fn each_link<T: Display>(
    view: &View<'_>,
    page: &mut Page<'_>,
    metric: &'static Metric,
    value: impl Fn(&LinkView) -> Option<T>,
) {
    let gateway = view.gateway;
    let Some((cluster, ha)) = gateway.cluster().zip(gateway.config().ha.as_ref()) else {
        return;
    };
    let mut samples = page.begin(metric);
    for peer in gateway.peers() {
        let links = cluster.ha().peer(view.now, peer).map(|peer| peer.links);
        for (link, config) in links.iter().flatten().zip(&ha.links) {
            if let Some(value) = value(link) {
                let name = config.listen.to_string();
                samples.add(&[gateway.peer_name(peer), &name], value);
            }
        }
    }
}
