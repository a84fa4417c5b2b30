//! The state kept for each peer.

use std::time::Duration;

use super::Replicator;
use super::codec::FrameBuffer;
use super::refusal::Refusals;
use crate::evidence::Heard;
use crate::flow::{GroupId, GroupSet, PeerId, PolicyId, PortId};
use crate::session::SessionId;
use crate::store::digest::Buckets;
use crate::store::{Journal, Seq};
use crate::time::Time;

/// Traffic to and from a peer, since the start of the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// States and ends of sessions that were sent.
    pub changes_sent: u64,
    /// Those that came.
    pub changes_received: u64,
    /// Bytes written to the stream, after the greeting.
    pub bytes_sent: u64,
    /// Bytes that the stream brought.
    pub bytes_received: u64,
}

/// One peer: its connection, what goes there, and what comes from there.
#[derive(Debug)]
pub(super) struct SyncPeer {
    pub(super) name: String,
    pub(super) connected: bool,
    /// The process of it that the election hears: a connection takes longer to end.
    pub(super) heard: Heard,
    /// Until when a lost peer may resume its stream.
    pub(super) resumable_until: Option<Time>,
    pub(super) hello_sent: bool,
    /// The peer's Hello; none before that.
    pub(super) remote: Option<Remote>,
    /// Its last Hello named other policies, pools or forwards.
    pub(super) other_rules: bool,
    pub(super) traffic: Traffic,
    pub(super) incoming: FrameBuffer,
    pub(super) sender: Sender,
    pub(super) receiver: Receiver,
    /// By own group: the change up to which it held the sessions when it was last in sync.
    pub(super) kept: Vec<Option<Seq>>,
}

/// The peer's lists, in the terms of this unit.
#[derive(Debug, Default)]
pub(super) struct Remote {
    pub(super) ports: Vec<Option<PortId>>,
    pub(super) groups: Vec<Option<GroupId>>,
    pub(super) policies: Vec<PolicyId>,
    /// The digest of its settings.
    pub(super) ruleset: [u8; 16],
    /// The names of those that differ from this unit's.
    pub(super) differing: Vec<String>,
    /// By own group: a difference keeps either from taking it over.
    pub(super) conflicts: Vec<bool>,
    /// The version of its program.
    pub(super) program: Option<String>,
    /// It knows messages about configs.
    pub(super) takes_configs: bool,
    /// It knows that not all units hold each group.
    pub(super) knows_copies: bool,
    /// By own group: the peer has it too.
    pub(super) has: Vec<bool>,
    /// It cuts groups into other numbers of slots.
    pub(super) other_cuts: bool,
}

/// A connected peer's report on itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct About<'a> {
    /// The digest of its settings: virtual addresses, groups, policies, pools and forwards.
    pub ruleset: [u8; 16],
    /// Whether that is the digest of this unit too.
    pub rules_equal: bool,
    /// The names of the differences, as far as they were reported.
    pub differing: &'a [String],
    /// The version of its program; none if it does not say it.
    pub program: Option<&'a str>,
}

impl About<'_> {
    /// Whether nothing differs that must be the same on all units.
    pub fn is_equal(&self) -> bool {
        self.rules_equal && self.differing.is_empty()
    }
}

/// The state of sending to a peer. Lists are by own [`GroupId`].
#[derive(Debug)]
pub(super) struct Sender {
    /// The terms with which the peer was told that this unit sends a group.
    pub(super) told: Vec<Option<u64>>,
    /// Terms of reigns that were over before the peer, which claims the group too, was told.
    pub(super) lost_reigns: Vec<Option<u64>>,
    /// The change that the last batch brought the peer to.
    pub(super) sent: Seq,
    /// The part that the peer has acknowledged.
    pub(super) confirmed: Seq,
    /// Everything up to here is at the peer, or does not concern it.
    pub(super) acked: Seq,
    /// Everything up to here was done at this time.
    pub(super) watch: (Seq, Time),
    /// Buckets that differ, and are not being sent yet.
    pub(super) pending: Vec<Buckets>,
    pub(super) scan: Option<Scan>,
    pub(super) marks: Vec<Mark>,
    pub(super) next_mark: Time,
    /// The terms of handovers to send after all changes.
    pub(super) handovers: Vec<Option<u64>>,
    /// Groups of which it was relieved in this term.
    pub(super) relieved: GroupSet,
    /// Since when it is told of a group without being one of the holders, if it is not.
    pub(super) surplus_since: Vec<Time>,
    /// It must be asked to begin a maintenance.
    pub(super) drain: bool,
    /// There was more to send than the stream took.
    pub(super) blocked: bool,
}

/// A pass over the table that sends some buckets again.
#[derive(Debug)]
pub(super) struct Scan {
    pub(super) slot: u32,
    pub(super) buckets: Vec<Buckets>,
    /// The last change when the pass was through: what has moved out of its way comes before it.
    pub(super) through_at: Option<Seq>,
}

/// The comparison of a group's sums with those of a peer.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Mark {
    /// The newest mark.
    pub(super) seq: Seq,
    /// Marks that may still be answered: each allows one verdict.
    pub(super) unanswered: u8,
    /// The last verdict was that nothing differs.
    pub(super) equal: bool,
    /// One verdict was, since the peer was told of the group.
    pub(super) joined: bool,
    /// Verdicts in a row that something differs.
    pub(super) strikes: u32,
    /// This unit has taken what the peer had of the group: the last change by then.
    pub(super) merged: Option<Seq>,
}

/// The state of receiving from a peer. Lists are by own [`GroupId`].
#[derive(Debug)]
pub(super) struct Receiver {
    /// Of the peer's process.
    pub(super) epoch: u64,
    /// Its last change that was applied.
    pub(super) applied: Seq,
    pub(super) acknowledged: Seq,
    /// Operations of the current batch that are done, in bytes.
    pub(super) offset: usize,
    /// The terms with which it sends groups.
    pub(super) claims: Vec<Option<u64>>,
    pub(super) authority: Vec<Authority>,
    /// Groups that it handed over to this unit, and whose last changes may still come.
    pub(super) handed: Vec<bool>,
    /// The last own change before it began to send buckets again.
    pub(super) begun_at: Option<Seq>,
    pub(super) sweep: Option<Sweep>,
    /// To be sent; one a group at most.
    pub(super) verdicts: Vec<(Seq, GroupId, Buckets)>,
    /// By group: whether this unit is to offer the peer what it may lack, before the peer's
    /// comparisons may remove anything here.
    pub(super) unions: Vec<Union>,
    /// The pass over the table that writes what is offered.
    pub(super) offering: Option<Offering>,
    /// Groups of which the peer has offered all, to be answered.
    pub(super) taken: Vec<GroupId>,
    /// Refused sessions that the peer is still to be told of.
    pub(super) refusals: Refusals,
    /// Groups of which a session was refused since the last comparison without a difference.
    pub(super) lacks: GroupSet,
}

/// How far the union of what two units hold is, which follows each change of primary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Union {
    /// Nothing is to be offered, or the primary has taken it: comparisons count.
    #[default]
    Done,
    /// Differences found by the next comparison are offered.
    Due,
    /// These buckets are being offered.
    Offering(Buckets),
    /// All is offered, and the primary has not answered.
    Offered,
}

/// A pass over the table for one group.
#[derive(Clone, Copy, Debug)]
pub(super) struct Offering {
    pub(super) group: GroupId,
    pub(super) slot: u32,
    pub(super) buckets: Buckets,
}

/// A pass over the table that removes what a peer has not named.
#[derive(Debug)]
pub(super) struct Sweep {
    pub(super) slot: u32,
    pub(super) until: Seq,
    pub(super) buckets: Vec<Buckets>,
    /// Those of one step.
    pub(super) found: Vec<SessionId>,
}

/// A peer's rights over the sessions of a group here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Authority {
    /// Nothing: it does not send the group, or another unit has a higher term.
    None,
    /// Both units are primary for the moment: add sessions, and move them forward. Which of them
    /// stays is not known here, and it need not be the one with the higher term: so no session that
    /// lives here ends for the sake of the other one.
    Shared,
    /// Everything.
    Owner,
}

impl SyncPeer {
    pub(super) fn new(name: &str, groups: usize) -> SyncPeer {
        SyncPeer {
            name: name.to_owned(),
            connected: false,
            heard: Heard::default(),
            resumable_until: None,
            hello_sent: false,
            remote: None,
            other_rules: false,
            traffic: Traffic::default(),
            incoming: FrameBuffer::default(),
            sender: Sender {
                told: vec![None; groups],
                lost_reigns: vec![None; groups],
                sent: 0,
                confirmed: 0,
                acked: 0,
                watch: (0, Time::ZERO),
                pending: vec![Buckets::default(); groups],
                scan: None,
                marks: vec![Mark::default(); groups],
                next_mark: Time::ZERO,
                handovers: vec![None; groups],
                relieved: GroupSet::default(),
                surplus_since: vec![Time::ZERO; groups],
                drain: false,
                blocked: false,
            },
            receiver: Receiver {
                epoch: 0,
                applied: 0,
                acknowledged: 0,
                offset: 0,
                claims: vec![None; groups],
                authority: vec![Authority::None; groups],
                handed: vec![false; groups],
                begun_at: None,
                sweep: None,
                verdicts: Vec::new(),
                unions: vec![Union::Done; groups],
                offering: None,
                taken: Vec::new(),
                refusals: Refusals::default(),
                lacks: GroupSet::default(),
            },
            kept: vec![None; groups],
        }
    }

    /// Forgets what holds for one connection only; keeps what a next one can resume from.
    pub(super) fn reset(&mut self) {
        self.reset_for(self.sender.told.len());
    }

    /// Another group has the place `at` of `groups` from now on, or none. No stream is open.
    pub(super) fn reset_group(&mut self, groups: usize, at: usize) {
        self.reset_for(groups);
        self.kept.resize(groups, None);
        self.kept[at] = None;
    }

    fn reset_for(&mut self, groups: usize) {
        let fresh = SyncPeer::new(&self.name, groups);
        for (kept, mark) in self.kept.iter_mut().zip(&self.sender.marks) {
            *kept = if mark.joined {
                Some(self.sender.acked)
            } else {
                *kept
            };
        }
        let kept = std::mem::take(&mut self.kept);
        let (sender, receiver) = (&self.sender, &self.receiver);
        *self = SyncPeer {
            heard: self.heard,
            resumable_until: self.resumable_until,
            other_rules: self.other_rules,
            traffic: self.traffic,
            kept,
            sender: Sender {
                sent: sender.sent,
                confirmed: sender.confirmed,
                acked: sender.acked,
                watch: sender.watch,
                ..fresh.sender
            },
            receiver: Receiver {
                epoch: receiver.epoch,
                applied: receiver.applied,
                ..fresh.receiver
            },
            ..fresh
        };
    }

    /// Whether removals must be remembered for it.
    pub(super) fn counts(&self) -> bool {
        self.connected || self.resumable_until.is_some()
    }

    /// Whether the election hears the process that the stream leads to.
    #[inline]
    fn is_heard(&self) -> bool {
        self.heard.by_link == Some(self.receiver.epoch)
    }

    /// Whether the process that its last stream led to is known to live, if only from the data
    /// ports.
    pub(super) fn lives(&self) -> bool {
        self.heard.at_all == Some(self.receiver.epoch)
    }

    /// Whether it has all of a group that it was told of, and no more than the newest changes is
    /// under way.
    #[inline]
    pub(super) fn is_in_sync_for(&self, group: GroupId) -> bool {
        let index = usize::from(group.0);
        let told = self.sender.told.get(index).is_some_and(Option::is_some);
        let joined = self.sender.marks.get(index).is_some_and(|mark| mark.joined);
        self.connected && self.is_heard() && told && joined
    }
}

impl Replicator {
    /// The cheap part of [`Replicator::lag`]: the sequence gap and the oldest age.
    pub fn backlog(&self, peer: PeerId, journal: &Journal, now: Time) -> (u64, Duration) {
        let Some(SyncPeer { sender, .. }) = self.peers.get(peer.index()) else {
            return Default::default();
        };
        match journal.log().last().saturating_sub(sender.acked) {
            0 => Default::default(),
            gap => (gap, now.since(sender.watch.1)),
        }
    }

    /// Whether the settings of `peer` for a group agree with those of this unit, as far as it is
    /// known. One that lacks a group may lack what that group needs; all else must be the same.
    pub(crate) fn agrees(&self, peer: PeerId, group: GroupId) -> bool {
        let remote = self.peers.get(peer.index());
        let remote = remote.and_then(|peer| peer.remote.as_ref());
        let conflicts = remote.and_then(|it| it.conflicts.get(usize::from(group.0)));
        !conflicts.is_some_and(|it| *it)
    }

    /// Whether a peer has other policies, pools or forwards, as far as it is known.
    pub(crate) fn rules_differ(&self) -> bool {
        self.peers.iter().any(|peer| peer.other_rules)
    }

    /// A peer's report on itself when its stream began; none while there is no stream.
    pub fn about(&self, peer: PeerId) -> Option<About<'_>> {
        let remote = self.peers.get(peer.index())?.remote.as_ref()?;
        Some(About {
            ruleset: remote.ruleset,
            rules_equal: remote.ruleset == self.identity.ruleset,
            differing: &remote.differing,
            program: remote.program.as_deref(),
        })
    }

    /// The digest of the settings of this unit.
    pub fn ruleset(&self) -> [u8; 16] {
        self.identity.ruleset
    }

    /// Traffic to and from a peer.
    pub fn traffic(&self, peer: PeerId) -> Traffic {
        let peer = self.peers.get(peer.index());
        peer.map_or_else(Traffic::default, |peer| peer.traffic)
    }

    /// Which process of `peer` the election hears, whenever that changes. A peer that it does not
    /// hear by a link is not in sync: nobody waits for it. Nor is one whose process is another than
    /// the stream leads to: it has restarted, and holds nothing yet. A process has one number,
    /// which its heartbeats and its Hello carry, so it does not matter which of them come first.
    pub fn set_heard(&mut self, peer: PeerId, heard: Heard) {
        if let Some(known) = self.peers.get_mut(peer.index()) {
            known.heard = heard;
            self.untold.note_peer(peer.index());
        }
    }
}

impl Sender {
    /// Starts at `seq`: the peer has all changes up to it, or learns of them in another way.
    pub(super) fn start_at(&mut self, seq: Seq, now: Time) {
        (self.sent, self.confirmed, self.acked) = (seq, seq, seq);
        self.watch = (seq, now);
    }

    /// Changes up to `read` that were not sent don't concern the peer.
    pub(super) fn settle(&mut self, read: Seq, last: Seq, now: Time) {
        self.acked = if self.confirmed == self.sent {
            read
        } else {
            self.confirmed
        };
        if self.acked >= self.watch.0 {
            self.watch = (last, now);
        }
    }

    /// Differences found in a former term are void in the next one.
    pub(super) fn forget_repairs(&mut self, group: usize) {
        self.pending[group] = Buckets::default();
        if let Some(scan) = &mut self.scan {
            scan.buckets[group] = Buckets::default();
        }
    }

    /// Whether there are buckets to send again.
    pub(super) fn is_repairing(&self) -> bool {
        self.scan.is_some() || self.pending.iter().any(|buckets| !buckets.is_empty())
    }

    /// How long to wait with the next mark after buckets were sent: not at all at first, then
    /// longer and longer, since what the peer can't take it won't take the next time either.
    pub(super) fn patience(&self) -> Duration {
        let strikes = self
            .marks
            .iter()
            .map(|mark| mark.strikes)
            .max()
            .unwrap_or(0);
        match strikes {
            0 | 1 => Duration::ZERO,
            more => Duration::from_secs(1 << (more - 2).min(6)),
        }
    }
}
