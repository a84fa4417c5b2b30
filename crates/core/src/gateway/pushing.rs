//! One config for all units: [`crate::push`] in the gateway.

use crate::flow::{MAX_PEERS, PeerId};
use crate::in_quotes::InQuotes;
use crate::push::{News, Push, PushError, Task};
use crate::sync::SyncEvent;
use crate::sync::codec::encode;
use crate::sync::message::Message;
use crate::time::Time;

use super::Gateway;

impl Gateway {
    /// The configs of the units.
    pub fn push(&self) -> &Push {
        &self.push
    }

    /// The same, for what the shell and its clients have to say.
    pub fn push_mut(&mut self) -> &mut Push {
        &mut self.push
    }

    /// Asks all units what they think of the text that a client has sent: see [`Push::begin`].
    ///
    /// # Errors
    /// Why not.
    pub fn begin_push(&mut self, now: Time) -> Result<u64, PushError> {
        for peer in self.peers() {
            let is_there = self.peer_state(now, peer).connected;
            self.push.note_there(peer, is_there);
        }
        self.push.begin(now, self.random.next())
    }

    /// The next thing for the shell to do with a pushed config.
    pub fn poll_push(&mut self, now: Time) -> Option<Task> {
        while let Some(news) = self.push.poll_news() {
            self.log_news(now, news);
        }
        self.push.poll_task()
    }

    /// Takes over which units there are, and which of them may configure this one.
    pub(super) fn set_pushers(&mut self) {
        let Some(cluster) = self.cluster.as_deref() else {
            return;
        };
        let ha = self.rules.config().ha.as_ref();
        let accepted = ha.map_or(&[][..], |ha| &ha.accept_push);
        let places = (0..MAX_PEERS as u8).map(PeerId);
        let names = places.map(|place| cluster.paths.name(place).unwrap_or_default());
        let peers = names.map(|name| (name, accepted.iter().any(|it| it == name)));
        self.push.set_peers(peers);
    }

    /// A stream is open: each side says where it is.
    pub(super) fn greet_push(&mut self, now: Time, event: &SyncEvent) {
        if let SyncEvent::PeerKnown { peer, .. } = *event {
            let cluster = self.cluster();
            let takes = cluster.is_some_and(|cluster| cluster.sync.takes_configs(peer));
            self.push.handle_up(now, peer, takes);
        }
    }

    /// Writes what is to be said to a peer about configs, and parts of a text only if its stream
    /// is idle otherwise. Returns whether there is more.
    pub(super) fn write_push(&mut self, peer: PeerId, is_idle: bool, out: &mut Vec<u8>) -> bool {
        if !self.push.has_message(peer) {
            return false;
        }
        let cluster = self.cluster.as_deref();
        if !cluster.is_some_and(|cluster| cluster.sync.takes_configs(peer)) {
            return false;
        }
        if let Some(message) = self.push.poll_transmit(peer, is_idle) {
            encode(out, &Message::Push(message));
        }
        self.push.has_message(peer)
    }

    fn log_news(&mut self, now: Time, news: News) {
        let from = |from: Option<String>| from.unwrap_or_else(|| "an operator here".to_owned());
        let (what, why) = match news {
            News::InForce {
                from: unit,
                generation,
            } => (
                format!("config {generation} is in force on trial"),
                format!("pushed by {}", from(unit)),
            ),
            News::WentBack { why } => ("the config before is in force again".to_owned(), why),
            News::Committed { generation } => {
                let what = format!("config {generation} is in the files");
                (
                    what,
                    "it is in force on all units that are there".to_owned(),
                )
            }
            News::Conflict(peer) => {
                let name = self.peer_name(peer);
                let what = format!("the config differs from that of {name}, and both were changed");
                (what, "push one of them: neither is overwritten".to_owned())
            }
            News::NotTaken { peer, why } => {
                let name = self.peer_name(peer);
                (format!("{name} did not take the config that it lacks"), why)
            }
        };
        log::warn!("push what={} why={}", InQuotes(&what), InQuotes(&why));
        self.log_event(now, "push", what, &why, None);
    }
}
