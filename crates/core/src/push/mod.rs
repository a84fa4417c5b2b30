//! One config for all units: a new one comes in force on all of them, or on none.
//!
//! The unit that an operator asks *leads*: it offers the text to its peers, collects what each
//! thinks of it, and when the operator agrees, has all put it in force. No file is written yet: a
//! unit that dies comes back with the config before. When all have it in force, and the operator
//! has confirmed it if that was wanted, the leader writes its own file and then tells the peers to
//! write theirs. So no unit has it in its file unless the leader has. A unit that is not told in
//! time goes back by itself.
//!
//! What a unit has is known by a generation, which each push raises, and a checksum. A unit that
//! was away and has an older generation gets the newer one when it returns, unless its config was
//! changed on it meanwhile: that is a conflict, which is shown and never merged.
//!
//! Messages can be lost with the stream that they are in, since a changed config opens the streams
//! again. So each side says again where it is when a stream opens, and each message may come twice.
//!
//! The machine has no files: [`Push::poll_task`] tells the shell what to do with a text.

pub mod message;

mod error;
mod follow;
mod lead;
mod leading;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::hash::Hasher;
use std::sync::Arc;
use std::time::Duration;

use siphasher::sip128::{Hasher128, SipHasher};

use crate::config::{Sources, bundle};
use crate::flow::PeerId;
use crate::time::Time;

pub use error::PushError;
use follow::Following;
use leading::Leading;
pub use leading::{Progress, UnitState};
use message::{Held, Message, Offer, Sum, Verdict};

/// The longest text that can be pushed: 50 000 policies, say.
pub const MAX_TEXT: usize = 8 << 20;

/// Bytes of a text in one message: a frame of replication is no longer than 64 KiB.
const PART: usize = 32 << 10;

/// How long a unit may take to answer, beside the time to send it the text.
const PATIENCE: Duration = Duration::from_secs(15);

/// How long an offer is kept that nobody puts in force: the operator may be reading.
const OFFER_KEPT: Duration = Duration::from_secs(600);

/// How much longer than the leader a peer waits before it goes back by itself.
const GRACE: Duration = Duration::from_secs(5);

/// Without a confirmation by an operator: how long a peer waits for the leader's.
const UNATTENDED: Duration = Duration::from_secs(30);

/// How far above this unit's own a generation may be: each is one push by an operator. A peer that
/// claims more is mistaken or lies, and would use them up.
const REACH: u64 = 1 << 32;

/// Messages that wait for a peer's stream; a peer that takes none gets the last state again when
/// its stream opens.
const MOST_WAITING: usize = 32;

/// The checksum of a text. Peers are authenticated, so the key is no secret.
pub fn sum(text: &str) -> Sum {
    let mut hasher = SipHasher::new_with_keys(0x7461_6e64, 0x656d_6777);
    hasher.write(text.as_bytes());
    hasher.finish128().as_bytes()
}

/// A config's text with its checksum, which takes a while to make.
#[derive(Clone, Debug)]
pub struct Text {
    sum: Sum,
    /// None if it can't be offered to others.
    whole: Option<Arc<str>>,
}

impl Text {
    /// That of a config and the files that it includes.
    pub fn of(sources: &Sources) -> Text {
        match bundle(sources) {
            Ok(text) => Text::new(&text, true),
            Err(_) => Text::new(sources.text(), false),
        }
    }

    /// One that can be offered to others (`is_whole`), or not.
    pub fn new(text: &str, is_whole: bool) -> Text {
        Text {
            sum: sum(text),
            whole: (is_whole && text.len() <= MAX_TEXT).then(|| Arc::from(text)),
        }
    }
}

/// Something for the shell to do, whose result it reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    /// See whether this unit could have the config: [`Push::checked`].
    Check {
        /// Of the push.
        id: u64,
        /// The config.
        text: Arc<str>,
    },
    /// Put it in force, without writing the file: [`Push::applied`].
    Apply {
        /// Of the push.
        id: u64,
        /// The config.
        text: Arc<str>,
    },
    /// Put that in force again that was before [`Task::Apply`]; no report.
    Return,
    /// Write it to the file, and remember its generation: [`Push::committed`].
    Commit {
        /// Of the push.
        id: u64,
        /// The config.
        text: Arc<str>,
        /// What to remember with it.
        generation: u64,
        /// The unit that it comes from; none if from an operator here.
        from: Option<String>,
        /// The operator, if known.
        by: Option<String>,
    },
    /// The file, as it is, has this generation; no report.
    Remember {
        /// What to remember.
        generation: u64,
        /// The checksum of the file.
        sum: Sum,
    },
}

/// Something to log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// A config came in force on this unit by a push.
    InForce {
        /// The unit that it comes from; none if from an operator here.
        from: Option<String>,
        /// Of the config.
        generation: u64,
    },
    /// The config before is in force again.
    WentBack {
        /// The reason.
        why: String,
    },
    /// A config is in the files of all units that were there.
    Committed {
        /// Of the config.
        generation: u64,
    },
    /// The unit and a peer have different configs, and both were changed.
    Conflict(PeerId),
    /// A unit that returned did not take the config that it lacks.
    NotTaken {
        /// The unit.
        peer: PeerId,
        /// The reason.
        why: String,
    },
}

/// How the configs of this unit and a peer relate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// It is not known, or neither was ever pushed.
    Unknown,
    /// They are the same.
    Same,
    /// The peer has an older one, and gets this unit's.
    Behind,
    /// The peer has a newer one, and this unit gets that.
    Ahead,
    /// They differ, and each was changed by itself, or one by hand: neither is overwritten.
    Conflict,
}

/// Another unit.
#[derive(Debug, Default)]
struct Peer {
    /// Empty if nobody has the place.
    name: String,
    /// A stream leads there.
    is_up: bool,
    /// It knows these messages.
    takes: bool,
    /// `accept-push` has it.
    may_lead: bool,
    held: Option<Held>,
    waiting: VecDeque<Message>,
    /// The text that is being sent.
    sending: Option<Sending>,
    /// The conflict with it is logged.
    is_conflict_known: bool,
    /// The generation that it did not take when it returned.
    refused: Option<u64>,
}

/// A text on its way to a peer.
#[derive(Debug)]
struct Sending {
    id: u64,
    text: Arc<str>,
    at: usize,
}

/// The machine.
#[derive(Debug, Default)]
pub struct Push {
    /// The config of this unit.
    held: Held,
    /// The checksum of the last one that was pushed.
    pushed: Sum,
    /// Its text, if it can be offered to others.
    text: Option<Arc<str>>,
    /// By [`PeerId`].
    peers: Vec<Peer>,
    leading: Option<Leading>,
    following: Option<Following>,
    /// What a client has sent until now.
    upload: String,
    tasks: VecDeque<Task>,
    news: VecDeque<News>,
}

impl Push {
    /// The units that there are, by place (empty names: nobody), and whether each may configure
    /// this one.
    pub fn set_peers<'a>(&mut self, peers: impl Iterator<Item = (&'a str, bool)>) {
        let mut places = 0;
        for (at, (name, may_lead)) in peers.enumerate() {
            if self.peers.len() <= at {
                self.peers.push(Peer::default());
            }
            let peer = &mut self.peers[at];
            if peer.name != name {
                *peer = Peer {
                    name: name.to_owned(),
                    ..Peer::default()
                };
            }
            peer.may_lead = may_lead;
            places = at + 1;
        }
        self.peers.truncate(places);
    }

    /// What was remembered of the last push: see [`Task::Remember`]. Call it before
    /// [`Push::set_config`].
    pub fn recall(&mut self, generation: u64, sum: Sum) {
        (self.held.generation, self.pushed) = (generation, sum);
    }

    /// The text that came in force from the file. Not for what a push puts in force.
    pub fn set_config(&mut self, text: Text) {
        let before = self.held;
        self.held.sum = text.sum;
        self.held.is_changed = before.generation > 0 && self.pushed != text.sum;
        self.text = text.whole;
        if self.held != before {
            self.tell_state();
        }
    }

    /// What this unit has.
    pub fn held(&self) -> Held {
        self.held
    }

    /// How a peer's config relates to this unit's.
    pub fn relation(&self, peer: PeerId) -> Relation {
        let theirs = self.peers.get(peer.index()).and_then(|peer| peer.held);
        let Some(theirs) = theirs else {
            return Relation::Unknown;
        };
        let own = self.held;
        if own.generation == 0 && theirs.generation == 0 {
            return Relation::Unknown;
        }
        let unchanged = |held: Held| held.generation > 0 && !held.is_changed;
        match own.generation.cmp(&theirs.generation) {
            _ if own.sum == theirs.sum => Relation::Same,
            std::cmp::Ordering::Greater if unchanged(own) && unchanged(theirs) => Relation::Behind,
            std::cmp::Ordering::Less if unchanged(own) && unchanged(theirs) => Relation::Ahead,
            _ => Relation::Conflict,
        }
    }

    /// Whether a config is in force that is not in the file: nothing else may change it now.
    pub fn is_on_trial(&self) -> bool {
        let leads = self.leading.as_ref().is_some_and(Leading::is_on_trial);
        leads || self.following.as_ref().is_some_and(Following::is_on_trial)
    }

    /// A stream to `peer` is open, and the peer has said whether it knows these messages.
    pub fn handle_up(&mut self, now: Time, peer: PeerId, takes: bool) {
        let held = Message::State(self.held);
        let Some(place) = self.peers.get_mut(peer.index()) else {
            return;
        };
        (place.is_up, place.takes) = (true, takes);
        place.waiting.clear();
        place.sending = None;
        if !takes {
            return;
        }
        place.waiting.push_back(held);
        self.say_again(now, peer);
        if let Some(reply) = self.following.as_ref().and_then(|it| it.reply_to(peer)) {
            self.send(peer, reply);
        }
    }

    /// The stream to `peer` has ended.
    pub fn handle_down(&mut self, peer: PeerId) {
        if let Some(place) = self.peers.get_mut(peer.index()) {
            place.is_up = false;
            place.waiting.clear();
            place.sending = None;
        }
    }

    /// A message of `peer` has come.
    pub fn handle_message(&mut self, now: Time, peer: PeerId, message: Message) {
        if self.peers.get(peer.index()).is_none() {
            return;
        }
        match message {
            Message::State(held) => self.handle_state(now, peer, held),
            Message::Offer(offer) => self.handle_offer(now, peer, offer),
            Message::Part { id, bytes } => self.handle_part(peer, id, &bytes),
            Message::Answer { id, verdict } => self.handle_answer(now, peer, id, verdict),
            Message::Apply { id, seconds } => self.handle_apply(now, peer, id, seconds),
            Message::Applied { id, why } => self.handle_applied(now, peer, id, why),
            Message::Confirm { id } => self.handle_confirm(peer, id),
            Message::Committed { id, why } => self.handle_committed(now, peer, id, why),
            Message::Abort { id, why } => self.handle_abort(peer, id, &why),
            Message::Unknown => {}
        }
    }

    /// The next message for `peer`; parts of a text only if its stream is idle otherwise.
    pub fn poll_transmit(&mut self, peer: PeerId, is_idle: bool) -> Option<Message> {
        let place = self.peers.get_mut(peer.index()).filter(|it| it.is_up)?;
        if let Some(message) = place.waiting.pop_front() {
            return Some(message);
        }
        let sending = place.sending.as_mut().filter(|_| is_idle)?;
        let bytes = sending.text.as_bytes();
        let part = &bytes[sending.at..bytes.len().min(sending.at + PART)];
        let message = Message::Part {
            id: sending.id,
            bytes: part.to_vec(),
        };
        sending.at += part.len();
        if sending.at == bytes.len() {
            place.sending = None;
        }
        Some(message)
    }

    /// Whether a peer, although no stream leads there now, is there: it gets what is to be said
    /// when one does.
    pub fn note_there(&mut self, peer: PeerId, is_there: bool) {
        if !is_there {
            self.handle_down(peer);
        }
    }

    /// Whether [`Push::poll_transmit`] has something.
    pub fn has_message(&self, peer: PeerId) -> bool {
        let place = self.peers.get(peer.index()).filter(|it| it.is_up);
        place.is_some_and(|it| !it.waiting.is_empty() || it.sending.is_some())
    }

    /// The next thing for the shell to do.
    pub fn poll_task(&mut self) -> Option<Task> {
        self.tasks.pop_front()
    }

    /// The next thing to log.
    pub fn poll_news(&mut self) -> Option<News> {
        self.news.pop_front()
    }

    /// The shell has checked a text.
    pub fn checked(&mut self, now: Time, id: u64, verdict: Verdict) {
        match self.leading.as_mut().filter(|it| it.id == id) {
            Some(leading) => {
                leading.note_answer(None, verdict);
                self.settle(now);
            }
            None => self.follow_checked(id, verdict),
        }
    }

    /// The shell has put a text in force, or has not: then what was before still is.
    pub fn applied(&mut self, now: Time, id: u64, result: Result<(), String>) {
        match self.leading.as_mut().filter(|it| it.id == id) {
            Some(leading) => {
                leading.note_applied(None, result);
                self.settle(now);
            }
            None => self.follow_applied(id, result),
        }
    }

    /// The shell has written a text with that checksum to the file, or has not.
    pub fn committed(&mut self, now: Time, id: u64, result: Result<Sum, String>) {
        match self.leading.as_mut().filter(|it| it.id == id) {
            Some(_) => self.lead_committed(now, result),
            None => self.follow_committed(id, result),
        }
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Time) {
        self.lead_timeout(now);
        self.follow_timeout(now);
    }

    /// The time of the next [`Push::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Time> {
        let leading = self.leading.as_ref().and_then(|it| it.deadline());
        let following = self.following.as_ref().and_then(|it| it.deadline());
        leading.into_iter().chain(following).min()
    }

    /// A peer says what it has.
    fn handle_state(&mut self, now: Time, peer: PeerId, theirs: Held) {
        self.peers[peer.index()].held = Some(theirs);
        let newer = theirs.generation > self.held.generation && self.can_be(theirs.generation);
        let is_heard = newer && self.peers[peer.index()].may_lead;
        if is_heard && theirs.sum == self.held.sum && !theirs.is_changed {
            // Somebody has copied the file, or this unit died while it wrote it.
            self.held.generation = theirs.generation;
            self.held.is_changed = false;
            let (generation, sum) = (theirs.generation, theirs.sum);
            self.pushed = sum;
            // Only the last one counts, however fast they come.
            self.tasks.retain(|it| !matches!(it, Task::Remember { .. }));
            self.tasks.push_back(Task::Remember { generation, sum });
            self.tell_state();
        }
        let relation = self.relation(peer);
        // In the middle of a push they differ for a moment.
        let is_conflict = relation == Relation::Conflict && !self.is_on_trial();
        let place = &mut self.peers[peer.index()];
        place.refused = None;
        if is_conflict && !place.is_conflict_known {
            self.news.push_back(News::Conflict(peer));
        }
        place.is_conflict_known = is_conflict;
        self.lead_next_returned(now);
    }

    /// Whether there can be a config of that generation.
    fn can_be(&self, generation: u64) -> bool {
        generation <= self.held.generation.saturating_add(REACH)
    }

    /// Tells all peers what this unit has.
    fn tell_state(&mut self) {
        for at in 0..self.peers.len() {
            self.send(PeerId(at as u8), Message::State(self.held));
        }
    }

    /// The text of `id` is this unit's config from now on.
    fn keep(&mut self, text: Arc<str>, sum: Sum, generation: u64) {
        self.held = Held {
            generation,
            sum,
            is_changed: false,
        };
        self.pushed = self.held.sum;
        self.text = Some(text);
        self.tell_state();
    }

    fn send(&mut self, peer: PeerId, message: Message) {
        let place = self.peers.get_mut(peer.index());
        let Some(place) = place.filter(|place| place.is_up && place.takes) else {
            return;
        };
        if place.waiting.len() < MOST_WAITING {
            place.waiting.push_back(message);
        }
    }

    fn send_offer(&mut self, peer: PeerId, offer: Offer, text: &Arc<str>) {
        self.send(peer, Message::Offer(offer));
        let place = &mut self.peers[peer.index()];
        place.sending = Some(Sending {
            id: offer.id,
            text: Arc::clone(text),
            at: 0,
        });
    }
}
