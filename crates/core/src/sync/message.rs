//! The messages between units.
//!
//! A stream of frames `length: u32 | type: u8 | body`, numbers in network order, the length that of
//! type and body. Unknown types, and bytes after the known part of a body, are skipped: they come
//! from a newer version. [`Message::Hello`] is the first frame each way; ports, groups and policies
//! are named by their place in the sender's lists from then on.
//!
//! `~` below is a number in LEB128. Times are durations, in units of 100 ms: clocks differ.

use super::settings::Settings;
use crate::evidence::Holding;
use crate::flow::FlowKey;
use crate::push::message as push;
use crate::session::{SessionFlags, tcp};
use crate::store::Seq;
use crate::store::digest::Buckets;

/// The version of the protocol; a unit talks to those of its own version.
pub const VERSION: u16 = 3;

/// The longest frame without its length field.
pub(crate) const MAX_FRAME: usize = 64 * 1024;

/// A frame of a replication stream.
#[derive(Debug, PartialEq)]
pub enum Message<'a> {
    /// 1: who the sender is.
    Hello(Box<Hello>),
    /// 2, `seq: u64 | operations`: brings the receiver to `seq`. Operations are read with
    /// [`super::codec::next_operation`].
    Batch {
        /// The change that the operations bring the receiver to.
        seq: Seq,
        /// [`Operation`]s.
        operations: &'a [u8],
    },
    /// 3, `epoch: u64 | seq: u64`: everything up to `seq` is applied.
    Ack {
        /// Of the receiver of this frame.
        epoch: u64,
        /// Of the last batch.
        seq: Seq,
    },
    /// 4: some buckets are sent again from here on, among other changes.
    Begin,
    /// 5, `count: u8 | count × (group: u8 | 256 bits)`: these are complete; a session that was not
    /// named since [`Message::Begin`] does not exist.
    End(Vec<(u8, Buckets)>),
    /// 6, `seq: u64 | group: u8 | 256 × u64`: the sums of the group's buckets here.
    Mark {
        /// Tells marks apart.
        seq: Seq,
        /// Its place in the list of the sender of this frame.
        group: u8,
        /// 256 numbers.
        sums: &'a [u8],
    },
    /// 7, `seq: u64 | group: u8 | 256 bits`: how the receiver's sums compared.
    Verdict {
        /// Of the mark.
        seq: Seq,
        /// The group, in the list of the sender of this frame.
        group: u8,
        /// The buckets that differ.
        differing: Buckets,
    },
    /// 8, `group: u8 | term: u64 | held term: u64 | held epoch: u64 | held position: u64`: the
    /// sender is primary of the group, and sends its sessions.
    Claim {
        /// Its place in the list of the sender of this frame.
        group: u8,
        /// The term with which the sender is primary.
        term: u64,
        /// The sender's evidence for the group when that term began.
        basis: Holding,
    },
    /// 9, `group: u8`: the sender sends no more sessions of the group.
    Release {
        /// Its place in the list of the sender of this frame.
        group: u8,
    },
    /// 10, `group: u8 | term: u64`: the receiver must become primary with this term.
    Handover {
        /// Its place in the list of the sender of this frame.
        group: u8,
        /// The new term.
        term: u64,
    },
    /// 11, `group: u8 | operations`: sessions that the sender, a standby, has and that the
    /// receiver, the primary, may lack. Only [`Operation::Put`] counts.
    Offer {
        /// The group, in the list of the sender of this frame.
        group: u8,
        /// [`Operation`]s.
        operations: &'a [u8],
    },
    /// 12, `group: u8`: everything is offered.
    OfferEnd {
        /// The group, in the list of the sender of this frame.
        group: u8,
    },
    /// 13, `group: u8`: the primary has taken the offered sessions; marks that follow count again.
    OfferTaken {
        /// The group.
        group: u8,
    },
    /// 14, `group: u8 | reason: u8 | named: u8 (0, 1) | family and key`: the sender does not hold a
    /// session of the receiver's, although it will acknowledge the change. Not named: there are
    /// more.
    Refuse {
        /// The group, in the list of the receiver of this frame.
        group: u8,
        /// Why it does not hold them.
        reason: Refusal,
        /// The key of its original direction.
        key: Option<FlowKey>,
    },
    /// 15, no body: an operator asks through the sender that the receiver begins a maintenance. A
    /// unit that does not know this skips it.
    Drain,
    /// 16, `group: u8 | port: u16 | record`: what the primary of the group knows of multicast on a
    /// port; see [`crate::multicast::record`]. A unit that does not know this skips it.
    Multicast {
        /// The group, in the list of the sender of this frame.
        group: u8,
        /// The port, in the list of the sender of this frame.
        port: u16,
        /// A [`Record`](crate::multicast::record::Record).
        record: &'a [u8],
    },
    /// 17, `body`: about the configs of the units, see [`crate::push::message`]. It waits for all
    /// else; a unit that does not know it skips it.
    Push(push::Message),
    /// 18, `group: u8`: the sender, primary of the group, does not count the receiver among those
    /// that hold its sessions. The receiver drops its copies, and gets no more. Only for those that
    /// name `copies` in their Hello.
    Relieve {
        /// Its place in the list of the sender of this frame.
        group: u8,
    },
    /// Of a newer version.
    Unknown,
}

/// Why a unit does not hold a session that a peer has sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Refusal {
    /// The table or the address book is full.
    Full = 1,
    /// The port or the group is not known there.
    Unknown = 2,
    /// A session there has the same packets.
    Conflict = 3,
    /// The sender is not, or no longer, primary of the group.
    NotPrimary = 4,
}

impl Refusal {
    /// All of them.
    pub const ALL: [Refusal; 4] = [
        Refusal::Full,
        Refusal::Unknown,
        Refusal::Conflict,
        Refusal::NotPrimary,
    ];

    /// For logs and events, after `since`.
    pub fn text(self) -> &'static str {
        match self {
            Refusal::Full => "its table is full",
            Refusal::Unknown => "it has no such port or group",
            Refusal::Conflict => "it has other sessions with the same packets",
            Refusal::NotPrimary => "it follows another primary",
        }
    }
}

/// `version: u16 | epoch: u64 | group-id: u8 | resume: u8 (0, 1) | resume epoch: u64 | resume seq:
/// u64 | ruleset: 16 bytes | max-sessions: u32 | name | ports | groups | policies | program`; a
/// name is `length: u8 | UTF-8`, a list `count: u16 | names`. After the program, which may be
/// empty: `complete: u8 (0, 1) | count: u16 | count × (name | hash: u32)`, the settings; then
/// `units`, a list, `features: u8` (1: it takes configs), `weights`, a list, `copies: u8`, and
/// `cuts`, a list. Units up to 0.1.0 do not send the program and the fields after it, older ones
/// not the last of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hello {
    /// [`VERSION`]; a unit refuses others.
    pub version: u16,
    /// The random number of the process, as in its heartbeats: changes are counted from 0 in each.
    pub epoch: u64,
    /// `group-id` of `[ha]`.
    pub group_id: u8,
    /// The receiver's epoch and the last change that was applied of it.
    pub resume: Option<(u64, Seq)>,
    /// The digest of everything that must be the same on all units.
    pub ruleset: [u8; 16],
    /// `max-sessions`: sessions beyond that are refused.
    pub max_sessions: u32,
    /// The name of the node.
    pub node: String,
    /// The names of its ports.
    pub ports: Vec<String>,
    /// The names of its groups.
    pub groups: Vec<String>,
    /// The names of its policies, empty for removed ones; the last ones are left out if the
    /// frame would get too long.
    pub policies: Vec<String>,
    /// The version of the program; none if the sender does not report it.
    pub program: Option<String>,
    /// The items of the digest, by name.
    pub settings: Settings,
    /// The names of all units of the cluster that the sender knows, itself included; empty if it
    /// does not report them.
    pub units: Vec<String>,
    /// The sender takes configs from peers: it knows [`Message::Push`].
    pub takes_configs: bool,
    /// The weights of units in groups that are cut, in words and in order. Units that differ in
    /// them see other owners of some slots.
    pub weights: Vec<String>,
    /// How many peers are to hold each group, by the sender's config; 0 means all. None if the
    /// sender does not know [`Message::Relieve`].
    pub copies: Option<u8>,
    /// The groups that are cut into slots, as `GROUP/COUNT`. Units that differ in them see other
    /// owners of hosts. None if the sender does not report them.
    pub cuts: Option<Vec<String>>,
}

/// `type: u8 | length: u8 | body`; other types are skipped.
#[derive(Debug, PartialEq)]
pub enum Operation {
    /// 1: a session as it is now.
    Put(Record),
    /// 2, `family and group: u8 × 2 | key`: a session that has ended.
    Remove {
        /// The key of its original direction.
        key: FlowKey,
        /// The group.
        group: u8,
    },
}

/// `marks: u8 | group: u8 | in~ | out~ | policy~ | key | [outgoing source | its port] | [outgoing
/// destination | its port] | idle~ | age~ | packets~ × 2 | bytes~ × 2 | [tcp]`
///
/// Marks: 1 IPv6, 2 source translated, 4 destination translated, 8 tracked TCP, 16 replied, 32
/// picked up, 64 to be logged. Key: `protocol: u8 | source | destination | source port: u16 |
/// destination port: u16`. TCP: `state: u8 | scales: u8 | marks: u8 | 2 × (acked: u32 | (end -
/// acked)~ | window~)`; a SYN that is not answered yet is left out, its sender repeats it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The group, in the sender's list.
    pub group: u8,
    /// The port it came in by, in the sender's list.
    pub in_port: u16,
    /// The port it goes out by, in the sender's list.
    pub out_port: u16,
    /// The policy, in the sender's list; [`u16::MAX`] if it does not know.
    pub policy: u16,
    /// As the packets of the original direction come in.
    pub key: FlowKey,
    /// As they go out; of the same family.
    pub outgoing: FlowKey,
    /// Those that are replicated.
    pub flags: SessionFlags,
    /// Since the last packet, in ticks.
    pub idle: u32,
    /// Since it was opened, in ticks.
    pub age: u32,
    /// Indexed by [`Direction`](crate::flow::Direction), as counted by the primary.
    pub packets: [u64; 2],
    /// Indexed likewise, from the IP header on.
    pub bytes: [u64; 2],
    /// The sequence numbers that are expected; only of TCP.
    pub tcp: Option<tcp::Tracker>,
}
