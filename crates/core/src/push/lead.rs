//! The unit that leads a push.

use std::sync::Arc;
use std::time::Duration;

use crate::flow::PeerId;
use crate::time::Time;

use super::leading::{Leading, Member, Progress, Step, UnitState};
use super::message::{Message, Offer, Sum, Verdict};
use super::{MAX_TEXT, News, PATIENCE, Push, PushError, Relation, Task, UNATTENDED};

impl Push {
    /// Takes the next piece of a text from a client; the first one is at 0.
    ///
    /// # Errors
    /// It is not the next piece, or the text is too long.
    pub fn upload(&mut self, at: usize, piece: &str) -> Result<(), PushError> {
        if at == 0 {
            self.upload.clear();
        }
        if at != self.upload.len() {
            return Err(PushError::OtherUpload);
        }
        if self.upload.len() + piece.len() > MAX_TEXT {
            self.upload = String::new();
            return Err(PushError::TooLong);
        }
        self.upload.push_str(piece);
        Ok(())
    }

    /// Asks all units what they think of the text that was sent. `random` names the push.
    ///
    /// # Errors
    /// Why not.
    pub fn begin(&mut self, now: Time, random: u64) -> Result<u64, PushError> {
        if self.is_on_trial() || self.leading.as_ref().is_some_and(Leading::is_under_way) {
            return Err(match self.leader() {
                Some(leader) => PushError::OnTrial(leader.to_owned()),
                None => PushError::UnderWay,
            });
        }
        if self.upload.is_empty() {
            return Err(PushError::NoText);
        }
        let theirs = self.peers.iter().filter_map(|peer| peer.held);
        let theirs = theirs.map(|held| held.generation);
        let highest = theirs.filter(|it| self.can_be(*it)).max().unwrap_or(0);
        let Some(generation) = highest.max(self.held.generation).checked_add(1) else {
            return Err(PushError::NoGeneration);
        };
        let text: Arc<str> = std::mem::take(&mut self.upload).into();
        let everyone = (0..self.peers.len()).map(|at| Some(PeerId(at as u8)));
        let units = [None].into_iter().chain(everyone);
        let units: Vec<Option<PeerId>> = units.filter(|it| self.is_unit(*it)).collect();
        self.lead(now, random, (text, generation, false), &units);
        Ok(random)
    }

    /// Puts the config in force on all units, if all can have it. With `confirm`, they go back
    /// unless [`Push::accept`] comes in that time.
    ///
    /// # Errors
    /// Why not.
    pub fn apply(
        &mut self,
        now: Time,
        id: u64,
        confirm: Option<Duration>,
        by: Option<String>,
    ) -> Result<(), PushError> {
        let leading = self.leading.as_mut().filter(|it| it.id == id);
        let Some(leading) = leading.filter(|it| it.step == Step::Checked) else {
            return Err(PushError::NotChecked);
        };
        leading.by = by;
        if let Some((peer, why)) = leading.first_failed() {
            let unit = self.unit(peer).to_owned();
            return Err(PushError::Unfit { unit, why });
        }
        self.begin_to_apply(now, confirm);
        Ok(())
    }

    /// Confirms the config that is in force on trial; returns which push that is.
    ///
    /// # Errors
    /// Why not.
    pub fn accept(&mut self) -> Result<u64, PushError> {
        match self.leading.as_mut().filter(|it| it.step == Step::Trial) {
            Some(leading) => {
                let id = leading.id;
                self.commit_here();
                Ok(id)
            }
            None => Err(self.nothing_waits()),
        }
    }

    /// Goes back on all units, or forgets a config that was only checked.
    ///
    /// # Errors
    /// Why not.
    pub fn abort(&mut self, why: &str) -> Result<u64, PushError> {
        let leading = self.leading.as_ref().filter(|it| {
            let steps = [Step::Checking, Step::Checked, Step::Applying, Step::Trial];
            steps.contains(&it.step)
        });
        let Some(id) = leading.map(|it| it.id) else {
            return Err(self.nothing_waits());
        };
        self.fail(why.to_owned());
        Ok(id)
    }

    /// How far the push `id` is, or the last one.
    pub fn progress(&self, id: Option<u64>) -> Option<(u64, Progress)> {
        let leading = self
            .leading
            .as_ref()
            .filter(|it| id.is_none_or(|id| it.id == id))?;
        let progress = match leading.step {
            Step::Checking => Progress::Checking,
            Step::Checked => Progress::Checked,
            Step::Applying => Progress::Applying,
            Step::Trial => Progress::Trial(leading.until),
            Step::CommittingHere | Step::Committing => Progress::Committing,
            Step::Done => Progress::Committed,
            Step::Failed => Progress::Failed,
        };
        Some((leading.id, progress))
    }

    /// Why the last push failed, if it did.
    pub fn why_failed(&self) -> Option<&str> {
        self.leading.as_ref()?.why.as_deref()
    }

    /// The generation that the last push makes.
    pub fn generation(&self) -> Option<u64> {
        Some(self.leading.as_ref()?.offer.generation)
    }

    /// The units of the last push: the peer, or none for this unit, how far it is, and what it
    /// thinks of the config.
    pub fn units(&self) -> impl Iterator<Item = (Option<PeerId>, &UnitState, &Verdict)> {
        let members = self.leading.iter().flat_map(|it| &it.members);
        members.map(|it| (it.peer, &it.state, &it.verdict))
    }

    /// Gives this unit's config to a unit that was away and has an older one: one after the other.
    pub(super) fn lead_next_returned(&mut self, now: Time) {
        let is_busy =
            self.is_on_trial() || self.leading.as_ref().is_some_and(Leading::is_under_way);
        let Some(text) = self.text.clone().filter(|_| !is_busy) else {
            return;
        };
        let generation = self.held.generation;
        let mut places = (0..self.peers.len()).map(|at| PeerId(at as u8));
        let lacks_it = |peer: &PeerId| {
            let place = &self.peers[peer.index()];
            let is_there = place.is_up && place.takes && place.refused != Some(generation);
            is_there && self.relation(*peer) == Relation::Behind
        };
        let Some(peer) = places.find(lacks_it) else {
            return;
        };
        // Any number that no other push has.
        let id = u64::from_be_bytes(*self.held.sum.first_chunk().unwrap_or(&[0; 8]));
        let id = id ^ generation ^ now.since(Time::ZERO).as_nanos() as u64;
        self.lead(now, id, (text, generation, true), &[Some(peer)]);
    }

    fn lead(
        &mut self,
        now: Time,
        id: u64,
        (text, generation, is_returning): (Arc<str>, u64, bool),
        units: &[Option<PeerId>],
    ) {
        let offer = Offer {
            id,
            generation,
            length: text.len() as u32,
            is_returning,
        };
        let mut members = Vec::new();
        for peer in units {
            let state = self.ask(*peer, offer, &text);
            members.push(Member {
                peer: *peer,
                state,
                verdict: Verdict::default(),
            });
        }
        self.leading = Some(Leading {
            id,
            offer,
            text,
            step: Step::Checking,
            members,
            confirm: None,
            by: None,
            until: now + PATIENCE,
            why: None,
        });
        self.settle(now);
    }

    /// Whether there is such a unit.
    fn is_unit(&self, peer: Option<PeerId>) -> bool {
        let place = peer.and_then(|peer| self.peers.get(peer.index()));
        peer.is_none() || place.is_some_and(|place| !place.name.is_empty())
    }

    fn ask(&mut self, peer: Option<PeerId>, offer: Offer, text: &Arc<str>) -> UnitState {
        let Some(peer) = peer else {
            let (id, text) = (offer.id, Arc::clone(text));
            self.tasks.push_back(Task::Check { id, text });
            return UnitState::Asked;
        };
        let place = &self.peers[peer.index()];
        match (place.is_up, place.takes) {
            (false, _) => UnitState::Away,
            (true, false) => {
                UnitState::Failed("its version takes no configs: update it first".to_owned())
            }
            (true, true) => {
                self.send_offer(peer, offer, text);
                UnitState::Asked
            }
        }
    }

    /// The stream to a peer is open: what was said by the one before may be lost.
    pub(super) fn say_again(&mut self, now: Time, peer: PeerId) {
        let Some(leading) = &self.leading else { return };
        let (id, offer, text) = (leading.id, leading.offer, Arc::clone(&leading.text));
        let member = leading.members.iter().find(|it| it.peer == Some(peer));
        let Some(state) = member.map(|it| it.state.clone()) else {
            return;
        };
        match (leading.step, state) {
            (Step::Checking, UnitState::Asked) => self.send_offer(peer, offer, &text),
            (Step::Applying, UnitState::Told) => {
                let seconds = self.seconds(now);
                self.send(peer, Message::Apply { id, seconds });
            }
            (Step::Committing | Step::Done, UnitState::InForce) => {
                self.send(peer, Message::Confirm { id })
            }
            (Step::Failed, _) => {
                let why = self.why_failed().unwrap_or_default().to_owned();
                self.send(peer, Message::Abort { id, why });
            }
            _ => {}
        }
    }

    pub(super) fn handle_answer(&mut self, now: Time, peer: PeerId, id: u64, verdict: Verdict) {
        if let Some(leading) = self.leading.as_mut().filter(|it| it.id == id) {
            leading.note_answer(Some(peer), verdict);
            self.settle(now);
        }
    }

    pub(super) fn handle_applied(&mut self, now: Time, peer: PeerId, id: u64, why: String) {
        if let Some(leading) = self.leading.as_mut().filter(|it| it.id == id) {
            let result = if why.is_empty() { Ok(()) } else { Err(why) };
            leading.note_applied(Some(peer), result);
            self.settle(now);
        }
    }

    pub(super) fn handle_committed(&mut self, now: Time, peer: PeerId, id: u64, why: String) {
        if let Some(leading) = self.leading.as_mut().filter(|it| it.id == id) {
            let has_it = why.is_empty();
            if let Some(member) = leading.member(Some(peer), &UnitState::InForce) {
                member.state = match has_it {
                    true => UnitState::Committed,
                    false => UnitState::Failed(why),
                };
            }
            if has_it {
                // It says so itself a moment later.
                self.peers[peer.index()].held = Some(self.held);
            }
            self.settle(now);
        }
    }

    /// The file of this unit is written: from here on there is no way back.
    pub(super) fn lead_committed(&mut self, now: Time, result: Result<Sum, String>) {
        let Some(leading) = self.leading.as_mut() else {
            return;
        };
        if leading.step != Step::CommittingHere {
            return;
        }
        let sum = match result {
            Ok(sum) => sum,
            Err(why) => return self.fail(format!("the file was not written: {why}")),
        };
        leading.step = Step::Committing;
        leading.until = now + PATIENCE;
        if let Some(member) = leading.member(None, &UnitState::InForce) {
            member.state = UnitState::Committed;
        }
        let (id, text, generation) = (
            leading.id,
            Arc::clone(&leading.text),
            leading.offer.generation,
        );
        self.keep(text, sum, generation);
        self.tell_members(&Message::Confirm { id }, &UnitState::InForce);
        self.settle(now);
    }

    pub(super) fn lead_timeout(&mut self, now: Time) {
        let due = self.leading.as_ref().and_then(Leading::deadline);
        if due.is_none_or(|due| due > now) {
            return;
        }
        let Some(leading) = self.leading.as_mut() else {
            return;
        };
        match leading.step {
            Step::Checking | Step::Applying => {
                let silent = [UnitState::Asked, UnitState::Told];
                for member in &mut leading.members {
                    if silent.contains(&member.state) {
                        member.state = UnitState::Failed("it does not answer".to_owned());
                    }
                }
                self.settle(now);
            }
            Step::Trial => self.fail("it was not confirmed in time".to_owned()),
            _ => self.end(Step::Done),
        }
    }

    /// Takes the next step if all units have taken theirs.
    pub(super) fn settle(&mut self, now: Time) {
        let Some(leading) = &self.leading else { return };
        let is_returning = leading.offer.is_returning;
        match leading.step {
            Step::Checking if !leading.any(&UnitState::Asked) => {
                let failed = leading.first_failed();
                match (is_returning, failed) {
                    (false, _) => self.set_step(Step::Checked),
                    (true, None) => self.begin_to_apply(now, None),
                    (true, Some((_, why))) => self.not_taken(why),
                }
            }
            Step::Applying => match leading.first_failed() {
                Some((_, why)) if is_returning => self.not_taken(why),
                Some((peer, why)) => {
                    let why = format!("{}: {why}", self.unit(peer));
                    self.fail(why);
                }
                None if leading.any(&UnitState::Told) => {}
                None => self.all_applied(now),
            },
            Step::Committing if !leading.any(&UnitState::InForce) => self.end(Step::Done),
            _ => {}
        }
        let ended = |it: &Leading| matches!(it.step, Step::Done | Step::Failed);
        if self.leading.as_ref().is_some_and(ended) {
            self.lead_next_returned(now);
        }
    }

    fn begin_to_apply(&mut self, now: Time, confirm: Option<Duration>) {
        let Some(leading) = self.leading.as_mut() else {
            return;
        };
        (leading.step, leading.confirm) = (Step::Applying, confirm);
        leading.until = now + PATIENCE;
        let (id, text) = (leading.id, Arc::clone(&leading.text));
        if let Some(member) = leading.member(None, &UnitState::Fits) {
            member.state = UnitState::Told;
            self.tasks.push_back(Task::Apply { id, text });
        }
        let seconds = self.seconds(now);
        self.tell_members(&Message::Apply { id, seconds }, &UnitState::Fits);
        let members = self.leading.iter_mut().flat_map(|it| &mut it.members);
        for member in members.filter(|it| it.state == UnitState::Fits) {
            member.state = UnitState::Told;
        }
    }

    /// The time for a confirmation that peers are told.
    fn seconds(&self, now: Time) -> u32 {
        let leading = self.leading.as_ref();
        let confirm = leading.and_then(|it| it.confirm);
        // Until it is in force everywhere, and then the operator's.
        let applying = leading.map_or(Duration::ZERO, |it| it.until.since(now.min(it.until)));
        let all = applying + confirm.unwrap_or(UNATTENDED);
        u32::try_from(all.as_secs() + 1).unwrap_or(u32::MAX)
    }

    fn all_applied(&mut self, now: Time) {
        let Some(leading) = self.leading.as_mut() else {
            return;
        };
        let generation = leading.offer.generation;
        if leading.offer.is_returning {
            // This unit has it already.
            let id = leading.id;
            (leading.step, leading.until) = (Step::Committing, now + PATIENCE);
            self.tell_members(&Message::Confirm { id }, &UnitState::InForce);
            return;
        }
        match leading.confirm {
            Some(time) => (leading.step, leading.until) = (Step::Trial, now + time),
            None => self.commit_here(),
        }
        let from = None;
        self.news.push_back(News::InForce { from, generation });
    }

    fn commit_here(&mut self) {
        if let Some(leading) = self.leading.as_mut() {
            leading.step = Step::CommittingHere;
            self.tasks.push_back(Task::Commit {
                id: leading.id,
                text: Arc::clone(&leading.text),
                generation: leading.offer.generation,
                from: None,
                by: leading.by.clone(),
            });
        }
    }

    /// All units go back, or forget it.
    fn fail(&mut self, why: String) {
        let Some(leading) = self.leading.as_mut() else {
            return;
        };
        let was_on_trial = leading.is_on_trial();
        leading.step = Step::Failed;
        leading.why = Some(why.clone());
        let id = leading.id;
        let mut own = leading.members.iter().filter(|it| it.peer.is_none());
        // What is being put in force is taken back when it is: the shell does one after the other.
        let has_changed = |it: &Member| matches!(it.state, UnitState::Told | UnitState::InForce);
        if own.any(has_changed) {
            self.tasks.push_back(Task::Return);
        }
        let peers: Vec<PeerId> = self.units().filter_map(|(peer, ..)| peer).collect();
        for peer in peers {
            let why = why.clone();
            self.send(peer, Message::Abort { id, why });
        }
        if was_on_trial {
            self.news.push_back(News::WentBack { why });
        }
    }

    /// A unit that is back does not take the config.
    fn not_taken(&mut self, why: String) {
        let peer = self.units().find_map(|(peer, ..)| peer);
        self.fail(why.clone());
        if let Some(peer) = peer {
            self.peers[peer.index()].refused = Some(self.held.generation);
            self.news.push_back(News::NotTaken { peer, why });
        }
    }

    fn end(&mut self, step: Step) {
        self.set_step(step);
        if let Some(leading) = &self.leading {
            let generation = leading.offer.generation;
            self.news.push_back(News::Committed { generation });
        }
    }

    fn set_step(&mut self, step: Step) {
        if let Some(leading) = self.leading.as_mut() {
            leading.step = step;
        }
    }

    fn tell_members(&mut self, message: &Message, state: &UnitState) {
        let told = self.units().filter(|(_, it, _)| *it == state);
        let peers: Vec<PeerId> = told.filter_map(|(peer, ..)| peer).collect();
        for peer in peers {
            self.send(peer, message.clone());
        }
    }

    /// A unit for messages.
    fn unit(&self, peer: Option<PeerId>) -> &str {
        let place = peer.and_then(|peer| self.peers.get(peer.index()));
        place.map_or("this unit", |place| &place.name)
    }

    fn nothing_waits(&self) -> PushError {
        match self.leader() {
            Some(leader) => PushError::LedBy(leader.to_owned()),
            None => PushError::NothingWaits,
        }
    }
}
