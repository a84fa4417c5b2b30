//! Every metric, with its meaning. The book's table is generated from it.

use super::page::{Metric, MetricKind};

macro_rules! metrics {
    ($($id:ident = $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(pub(super) const $id: Metric = Metric {
            name: $name,
            kind: MetricKind::$kind,
            labels: &[$($label),*],
            help: $help,
        };)*

        /// All metrics, in the order of the page.
        pub const ALL: &[Metric] = &[$($id),*];
    };
}

metrics! {
    BUILD = Gauge "tandemgw_build_info" ["version", "node"]
        "Always 1: the running version and the name of the unit.";
    UPTIME = Gauge "tandemgw_uptime_seconds" []
        "Time since the gateway was started.";
    HEALTH = Gauge "tandemgw_health" []
        "0 if all is well, 1 if redundancy or sessions are at risk, 2 if packets are not forwarded; `tandemgw status` says what is wrong.";

    FORWARDED = Counter "tandemgw_packets_forwarded_total" []
        "Packets forwarded; a super-packet of up to 64 KB, which the kernel splits, counts as one.";
    DROPPED = Counter "tandemgw_packets_dropped_total" ["reason"]
        "Packets dropped, by reason.";
    OUTPUTS_LOST = Counter "tandemgw_outputs_lost_total" []
        "Answers, announcements and heartbeats that the gateway could not send.";
    CONFLICTS = Counter "tandemgw_address_conflicts_total" []
        "Frames in which another machine claimed a virtual address of this unit.";

    PORT_UP = Gauge "tandemgw_port_up" ["port", "interface"]
        "Whether the interface of the port is up and has carrier.";
    PORT_PACKETS_IN = Counter "tandemgw_port_received_packets_total" ["port"]
        "Packets received on the port, dropped ones included; a super-packet counts as one.";
    PORT_BYTES_IN = Counter "tandemgw_port_received_bytes_total" ["port"]
        "Bytes of IP received on the port.";
    PORT_PACKETS_OUT = Counter "tandemgw_port_forwarded_packets_total" ["port"]
        "Packets forwarded out of the port; a super-packet counts as one.";
    PORT_BYTES_OUT = Counter "tandemgw_port_forwarded_bytes_total" ["port"]
        "Bytes of IP forwarded out of the port.";

    TARGET_UP = Gauge "tandemgw_link_monitor_up" ["port", "server", "protocol"]
        "Whether the target of a [[link-monitor]] answers; left out while that is not known.";
    TARGET_RTT = Gauge "tandemgw_link_monitor_rtt_seconds" ["port", "server", "protocol"]
        "Round-trip time of its last answer.";
    TARGET_SENT = Counter "tandemgw_link_monitor_probes_total" ["port", "server", "protocol"]
        "Probes sent to it.";
    TARGET_ANSWERED = Counter "tandemgw_link_monitor_answers_total" ["port", "server", "protocol"]
        "Probes that it has answered.";

    SESSIONS = Gauge "tandemgw_sessions" ["protocol", "state"]
        "Sessions in the table.";
    SESSIONS_MAX = Gauge "tandemgw_sessions_max" []
        "Sessions that the table can hold.";
    MULTICAST_SESSIONS = Gauge "tandemgw_multicast_sessions" []
        "Sources and groups whose streams are forwarded.";
    MULTICAST_GROUPS = Gauge "tandemgw_multicast_groups" ["port", "family"]
        "Groups that the hosts of a port want.";
    MULTICAST_SOURCES = Gauge "tandemgw_multicast_sources" ["port", "family"]
        "Sources that they name, in all groups together.";
    MULTICAST_QUERIER = Gauge "tandemgw_multicast_querier" ["port", "family"]
        "Whether this unit asks the hosts of the port; 0 on a standby, and beside a router with a lower address.";
    SESSIONS_OPENED = Counter "tandemgw_sessions_opened_total" []
        "Sessions opened by a packet on this unit; those opened by peers are not counted.";
    SESSIONS_DROPPED_EARLY = Counter "tandemgw_sessions_dropped_early_total" []
        "Sessions ended to make room: in a full table or pool, or above a limit of their source.";
    SESSIONS_CLEARED = Counter "tandemgw_sessions_cleared_total" []
        "Sessions ended because a change of routes or policies forbids them.";

    FAST_ATTACHED = Gauge "tandemgw_fast_path_attached" ["port"]
        "Whether the port is on the fast path; absent with offload = \"tun\" or \"plain\".";
    FAST_SESSIONS = Gauge "tandemgw_fast_path_sessions" []
        "Sessions whose packets the kernel forwards.";
    FAST_ENTERED = Counter "tandemgw_fast_path_entered_total" []
        "Sessions that came into the fast path.";
    FAST_NO_ROOM = Counter "tandemgw_fast_path_no_room_total" []
        "Sessions that found no room there.";
    FAST_PACKETS = Counter "tandemgw_fast_path_packets_total" []
        "Packets that the kernel forwarded; tandemgw_packets_forwarded_total includes them.";
    FAST_BYTES = Counter "tandemgw_fast_path_bytes_total" []
        "Their bytes of IP.";
    FAST_LEFT = Counter "tandemgw_fast_path_left_total" ["reason"]
        "Packets that the program left to the process.";

    NAT_USED = Gauge "tandemgw_nat_pool_ports_used" ["pool", "protocol"]
        "External ports in use by mappings and forwards; port:NAME is the implicit pool of a port. TCP reuses a port for each destination, and is not counted.";
    NAT_SIZE = Gauge "tandemgw_nat_pool_ports_size" ["pool", "protocol"]
        "External ports that the pool has.";

    GROUP_PRIMARY = Gauge "tandemgw_group_primary" ["group"]
        "Whether this unit is primary of the group; without [ha] it always is.";
    GROUP_READY = Gauge "tandemgw_group_ready" ["group"]
        "Whether this unit is primary of the group, or could take over without losing a session.";
    GROUP_HOLDER = Gauge "tandemgw_group_holder" ["group"]
        "Whether this unit is primary of the group, or one of the units that are to hold its sessions; with copies, not all do.";
    GROUP_DEGRADED = Gauge "tandemgw_group_degraded" ["group"]
        "Whether the primary answers on the data ports only: the links to it are dead.";
    GROUP_TERM = Gauge "tandemgw_group_term" ["group"]
        "The highest known term of the group; each takeover raises it.";
    TAKEOVERS = Counter "tandemgw_takeovers_total" ["group", "reason"]
        "How often this unit became primary: start, silent, process-ended, goodbye or handover.";
    WITNESS_UP = Gauge "tandemgw_witness_up" []
        "Whether the witness has answered the last question; absent without [ha.witness].";
    WITNESS_DECISIONS = Counter "tandemgw_witness_decisions_total" ["result"]
        "Groups that the witness gave to this unit, which was in doubt (granted), or to another one that it did not hear (refused); and decisions in doubt without it (without).";

    PEER_CONNECTED = Gauge "tandemgw_peer_connected" ["peer"]
        "Whether heartbeats of the peer arrive.";
    PEER_IN_SYNC = Gauge "tandemgw_peer_in_sync" ["peer"]
        "Whether the peer and this unit hold each other's sessions.";
    PEER_DIGEST_EQUAL = Gauge "tandemgw_peer_digest_equal" ["peer"]
        "Whether both held exactly the same sessions at the last comparison; absent while the peer is not connected, or both are standby.";
    PEER_CONFIG_EQUAL = Gauge "tandemgw_peer_config_equal" ["peer"]
        "Whether the peer has the same policies, pools and forwards; absent until it has reported them.";
    LAG_CHANGES = Gauge "tandemgw_replication_lag_changes" ["peer"]
        "Changes of sessions that the peer has not acknowledged.";
    LAG_AGE = Gauge "tandemgw_replication_oldest_unacked_seconds" ["peer"]
        "Age of the oldest of these changes; 0 if there is none.";
    CHANGES_SENT = Counter "tandemgw_replication_changes_sent_total" ["peer"]
        "States and ends of sessions sent to the peer.";
    CHANGES_RECEIVED = Counter "tandemgw_replication_changes_received_total" ["peer"]
        "States and ends of sessions received from the peer.";
    SYNC_BYTES_SENT = Counter "tandemgw_replication_sent_bytes_total" ["peer"]
        "Bytes of the replication stream to the peer, before encryption.";
    SYNC_BYTES_RECEIVED = Counter "tandemgw_replication_received_bytes_total" ["peer"]
        "Bytes of the replication stream from the peer, after decryption.";
    REFUSED = Counter "tandemgw_replication_refused_total" ["reason"]
        "Records from peers that were refused: unknown port or group, table full, sender not primary, or in conflict with a session here.";
    GUARANTEE = Counter "tandemgw_pickup_guarantee_total" ["outcome"]
        "Sessions under pickup-guarantee: held until the peers had them, expired before that, or degraded because no peer was in sync.";

    ASYMMETRIC = Counter "tandemgw_asymmetric_packets_total" ["way"]
        "Packets that came to a unit which is not primary, with asymmetric-flows: forwarded in the primary's place (stood-in), passed on to it, or received from peers.";

    HANDSHAKES_LIMITED = Counter "tandemgw_link_handshakes_limited_total" []
        "Datagrams that may begin a handshake, from the address of a peer, refused because there were too many.";
    HANDSHAKES_FAILED = Counter "tandemgw_link_handshakes_failed_total" []
        "Handshakes on the links that failed, mostly because of a key that is not in the config.";
    FOREIGN_DATAGRAMS = Counter "tandemgw_link_foreign_datagrams_total" []
        "Datagrams on the links from addresses that no peer has.";
    LINK_UP = Gauge "tandemgw_link_up" ["peer", "link"]
        "Whether heartbeats of the peer arrive on the link, which is named after this unit's address on it.";
    RTT = Gauge "tandemgw_heartbeat_rtt_seconds" ["peer", "link"]
        "Round-trip time of the last heartbeat, including processing time on both units; absent before the first.";
    HEARTBEATS_SENT = Counter "tandemgw_heartbeats_sent_total" ["peer", "link"]
        "Heartbeats sent on the link.";
    HEARTBEATS_RECEIVED = Counter "tandemgw_heartbeats_received_total" ["peer", "link"]
        "Heartbeats received on the link.";
    HEARTBEATS_LOST = Counter "tandemgw_heartbeats_lost_total" ["peer", "link"]
        "Heartbeats missing in the sequence of those received while the link was up.";
    HEARTBEATS_REJECTED = Counter "tandemgw_heartbeats_rejected_total" ["reason"]
        "Heartbeats that were ignored because they were invalid.";

    TURN = Histogram "tandemgw_loop_turn_seconds" []
        "How long each turn of the event loop took, without the wait before it; packets that arrive meanwhile wait.";

    CPU = Counter "process_cpu_seconds_total" []
        "User and system CPU time of the process.";
    RESIDENT = Gauge "process_resident_memory_bytes" []
        "Memory of the process that is in RAM.";
    VIRTUAL = Gauge "process_virtual_memory_bytes" []
        "Memory that the process has mapped; the session table uses its part only as it fills.";
    OPEN_FDS = Gauge "process_open_fds" []
        "Open file descriptors.";
    MAX_FDS = Gauge "process_max_fds" []
        "Limit of open file descriptors.";
    STARTED = Gauge "process_start_time_seconds" []
        "Start time of the process, in seconds since the epoch.";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_conventions() {
        let mut names = std::collections::BTreeSet::new();
        for metric in ALL {
            assert!(names.insert(metric.name), "{} is there twice", metric.name);
            let is_total = metric.name.ends_with("_total");
            assert_eq!(
                is_total,
                metric.kind == MetricKind::Counter,
                "{}",
                metric.name
            );
            assert!(metric.help.ends_with('.'), "{}", metric.name);
            assert!(!metric.help.contains(['\n', '\\']), "{}", metric.name);
        }
    }
}
