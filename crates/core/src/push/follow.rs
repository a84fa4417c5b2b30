//! The unit that another one configures.

use std::sync::Arc;
use std::time::Duration;

use crate::flow::PeerId;
use crate::time::Time;

use super::message::{Message, Offer, Sum, Verdict};
use super::{GRACE, MAX_TEXT, News, OFFER_KEPT, Push, Relation, Task};

/// A config that a peer has offered.
#[derive(Debug)]
pub(super) struct Following {
    leader: PeerId,
    offer: Offer,
    bytes: Vec<u8>,
    text: Option<Arc<str>>,
    step: Step,
    /// The last word to the leader, which is said again when a stream opens.
    reply: Option<Message>,
    /// When it is forgotten, or the unit goes back.
    until: Time,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Receiving,
    Checking,
    Answered,
    Applying,
    /// It is in force.
    Trial,
    Committing,
    Done,
}

impl Following {
    pub(super) fn is_on_trial(&self) -> bool {
        matches!(self.step, Step::Applying | Step::Trial | Step::Committing)
    }

    pub(super) fn deadline(&self) -> Option<Time> {
        match self.step {
            Step::Committing | Step::Done => None,
            _ => Some(self.until),
        }
    }

    pub(super) fn reply_to(&self, peer: PeerId) -> Option<Message> {
        self.reply.clone().filter(|_| self.leader == peer)
    }
}

impl Push {
    /// The unit whose config is on trial here.
    pub fn leader(&self) -> Option<&str> {
        let following = self.following.as_ref().filter(|it| it.is_on_trial())?;
        Some(&self.peers.get(following.leader.index())?.name)
    }

    pub(super) fn handle_offer(&mut self, now: Time, peer: PeerId, offer: Offer) {
        if let Some(following) = &mut self.following
            && (following.leader, following.offer.id) == (peer, offer.id)
        {
            match &following.reply {
                // The text may follow again: it is not needed.
                Some(reply) => {
                    let reply = reply.clone();
                    self.send(peer, reply);
                }
                None if following.step == Step::Receiving => following.bytes.clear(),
                None => {}
            }
            return;
        }
        let id = offer.id;
        let trial = self.following.as_ref().filter(|it| it.step == Step::Trial);
        if offer.is_returning && trial.is_some_and(|it| it.leader == peer) {
            // The leader has restarted, and knows no more of the one before.
            self.give_up("its leader has restarted".to_owned());
        }
        if let Some(why) = self.why_not(peer, &offer) {
            let verdict = Verdict {
                why_not: Some(why),
                ..Verdict::default()
            };
            self.send(peer, Message::Answer { id, verdict });
            return;
        }
        self.following = Some(Following {
            leader: peer,
            offer,
            bytes: Vec::new(),
            text: None,
            step: Step::Receiving,
            reply: None,
            until: now + OFFER_KEPT,
        });
    }

    /// Why this unit does not even look at a config.
    fn why_not(&self, peer: PeerId, offer: &Offer) -> Option<String> {
        let leader = &self.peers[peer.index()];
        let other = self.following.as_ref();
        let is_busy = self.leading.as_ref().is_some_and(|it| it.is_under_way())
            || other
                .is_some_and(|it| it.is_on_trial() || it.leader != peer && it.deadline().is_some());
        if !leader.may_lead {
            let name = &leader.name;
            return Some(format!(
                "it takes no config from {name}: add that to `accept-push` of [ha] there"
            ));
        }
        if is_busy {
            return Some("another push is under way there".to_owned());
        }
        if offer.length as usize > MAX_TEXT {
            return Some(format!("it is longer than {MAX_TEXT} bytes"));
        }
        if offer.generation <= self.held.generation {
            let own = self.held.generation;
            return Some(format!("it has a config of generation {own} already"));
        }
        if !self.can_be(offer.generation) {
            let claimed = offer.generation;
            return Some(format!("no config can be of generation {claimed} yet"));
        }
        let is_behind = self.relation(peer) == Relation::Ahead;
        if offer.is_returning && !is_behind {
            return Some("its config was changed on it, or never pushed".to_owned());
        }
        None
    }

    pub(super) fn handle_part(&mut self, peer: PeerId, id: u64, bytes: &[u8]) {
        let following = self.following.as_mut();
        let Some(following) =
            following.filter(|it| (it.leader, it.offer.id, it.step) == (peer, id, Step::Receiving))
        else {
            return;
        };
        let length = following.offer.length as usize;
        let room = length.saturating_sub(following.bytes.len());
        following.bytes.extend(&bytes[..bytes.len().min(room)]);
        if following.bytes.len() < length {
            return;
        }
        let Ok(text) = String::from_utf8(std::mem::take(&mut following.bytes)) else {
            let why_not = Some("it is not UTF-8".to_owned());
            let verdict = Verdict {
                why_not,
                ..Verdict::default()
            };
            self.follow_checked(id, verdict);
            return;
        };
        let text: Arc<str> = text.into();
        following.text = Some(Arc::clone(&text));
        following.step = Step::Checking;
        // Of several that the leader has offered since, only this one waits for its check.
        let led = self.leading.as_ref().map(|it| it.id);
        self.tasks
            .retain(|it| !matches!(it, Task::Check { id, .. } if Some(*id) != led));
        self.tasks.push_back(Task::Check { id, text });
    }

    pub(super) fn follow_checked(&mut self, id: u64, verdict: Verdict) {
        self.step(id, |following| match following.step {
            Step::Receiving | Step::Checking => {
                following.step = match verdict.why_not {
                    None => Step::Answered,
                    Some(_) => Step::Done,
                };
                Some(Message::Answer { id, verdict })
            }
            _ => None,
        });
    }

    pub(super) fn handle_apply(&mut self, now: Time, peer: PeerId, id: u64, seconds: u32) {
        let following = self.following.as_mut();
        let known = following.filter(|it| (it.leader, it.offer.id) == (peer, id));
        let Some(following) = known else {
            let why = "it has forgotten the config".to_owned();
            self.send(peer, Message::Applied { id, why });
            return;
        };
        let text = following.text.clone();
        match (following.step, text) {
            (Step::Answered, Some(text)) => {
                following.step = Step::Applying;
                following.reply = None;
                following.until = now + Duration::from_secs(u64::from(seconds)) + GRACE;
                self.tasks.push_back(Task::Apply { id, text });
            }
            _ => {
                if let Some(reply) = following.reply.clone() {
                    self.send(peer, reply);
                }
            }
        }
    }

    pub(super) fn follow_applied(&mut self, id: u64, result: Result<(), String>) {
        let mut in_force = None;
        let is_known = self.step(id, |following| {
            if following.step != Step::Applying {
                return None;
            }
            following.step = match result {
                Ok(()) => Step::Trial,
                Err(_) => Step::Done,
            };
            in_force = result
                .is_ok()
                .then_some((following.leader, following.offer.generation));
            let why = result.clone().err().unwrap_or_default();
            Some(Message::Applied { id, why })
        });
        if let Some((leader, generation)) = in_force {
            let from = Some(self.peers[leader.index()].name.clone());
            self.news.push_back(News::InForce { from, generation });
        } else if !is_known && result.is_ok() {
            // It was given up meanwhile.
            self.tasks.push_back(Task::Return);
        }
    }

    pub(super) fn handle_confirm(&mut self, peer: PeerId, id: u64) {
        let following = self.following.as_mut();
        let known = following.filter(|it| (it.leader, it.offer.id) == (peer, id));
        let Some(following) = known else {
            return;
        };
        match (following.step, following.text.clone()) {
            (Step::Trial, Some(text)) => {
                following.step = Step::Committing;
                following.reply = None;
                let generation = following.offer.generation;
                let from = Some(self.peers[peer.index()].name.clone());
                self.tasks.push_back(Task::Commit {
                    id,
                    text,
                    generation,
                    from,
                    by: None,
                });
            }
            _ => {
                if let Some(reply) = following.reply.clone() {
                    self.send(peer, reply);
                }
            }
        }
    }

    pub(super) fn follow_committed(&mut self, id: u64, result: Result<Sum, String>) {
        let (mut kept, mut of) = (None, 0);
        self.step(id, |following| {
            following.step = Step::Done;
            of = following.offer.generation;
            kept = following.text.take().zip(result.clone().ok());
            let why = result.err().unwrap_or_default();
            Some(Message::Committed { id, why })
        });
        if let Some((text, sum)) = kept {
            self.keep(text, sum, of);
            self.news.push_back(News::Committed { generation: of });
        }
    }

    pub(super) fn handle_abort(&mut self, peer: PeerId, id: u64, why: &str) {
        let following = self.following.as_ref();
        let known = following.filter(|it| (it.leader, it.offer.id) == (peer, id));
        if known.is_some_and(|it| it.step != Step::Committing && it.step != Step::Done) {
            self.give_up(why.to_owned());
        }
    }

    pub(super) fn follow_timeout(&mut self, now: Time) {
        let due = self.following.as_ref().and_then(Following::deadline);
        if due.is_some_and(|due| due <= now) {
            self.give_up("it was not confirmed in time".to_owned());
        }
    }

    /// Forgets the config, and goes back if it is in force.
    fn give_up(&mut self, why: String) {
        let Some(following) = self.following.take() else {
            return;
        };
        // What is being put in force is taken back when it is: see `follow_applied`.
        if following.step == Step::Trial {
            self.tasks.push_back(Task::Return);
            self.news.push_back(News::WentBack { why });
            // The leader may have written its file.
            self.tell_state();
        }
    }

    /// Takes a step of the push `id`, and tells the leader; returns whether it is known.
    fn step(&mut self, id: u64, act: impl FnOnce(&mut Following) -> Option<Message>) -> bool {
        let Some(following) = self.following.as_mut().filter(|it| it.offer.id == id) else {
            return false;
        };
        let leader = following.leader;
        if let Some(reply) = act(following) {
            following.reply = Some(reply.clone());
            self.send(leader, reply);
        }
        true
    }
}
