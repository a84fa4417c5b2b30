//! Units with files, a network that can be cut at each message, and processes that can die.

use super::*;

const OLD: &str = "old";
const NEW: &str = "new";

/// A unit: its process, and what survives it.
struct Unit {
    name: &'static str,
    push: Push,
    is_running: bool,
    /// The text in force.
    in_force: String,
    /// The text that was in force before a trial.
    before: Option<String>,
    file: String,
    remembered: Option<(u64, Sum)>,
    /// Why it would not take any config.
    unfit: Option<&'static str>,
    news: Vec<News>,
}

/// All units, each with a stream to each other one.
struct World {
    now: Time,
    units: Vec<Unit>,
    /// Links that are cut, by the lower and the higher place.
    cut: Vec<(usize, usize)>,
    /// Steps until `fault` happens: messages and tasks.
    left: Option<usize>,
    fault: fn(&mut World),
    steps: usize,
    next_id: u64,
    old_version: Option<usize>,
}

fn nothing(_: &mut World) {}

impl World {
    fn new(count: usize) -> World {
        let names = ["a", "b", "c"];
        let unit = |name: &'static str| Unit {
            name,
            push: Push::default(),
            is_running: false,
            in_force: String::new(),
            before: None,
            file: OLD.to_owned(),
            remembered: None,
            unfit: None,
            news: Vec::new(),
        };
        let mut world = World {
            now: Time::ZERO + Duration::from_secs(1000),
            units: names[..count].iter().map(|name| unit(name)).collect(),
            cut: Vec::new(),
            left: None,
            fault: nothing,
            steps: 0,
            next_id: 100,
            old_version: None,
        };
        for at in 0..count {
            world.start(at);
        }
        world.run();
        world
    }

    /// The place of unit `to` among the peers of unit `from`.
    fn place(from: usize, to: usize) -> PeerId {
        PeerId(if to < from { to } else { to - 1 } as u8)
    }

    fn start(&mut self, at: usize) {
        let names: Vec<&str> = self.units.iter().map(|unit| unit.name).collect();
        let unit = &mut self.units[at];
        unit.push = Push::default();
        let peers = names.iter().filter(|name| **name != unit.name);
        unit.push.set_peers(peers.map(|name| (*name, true)));
        if let Some((generation, sum)) = unit.remembered {
            unit.push.recall(generation, sum);
        }
        unit.push.set_config(Text::new(&unit.file, true));
        (unit.in_force, unit.before) = (unit.file.clone(), None);
        unit.is_running = true;
        for other in 0..self.units.len() {
            self.connect(at, other);
        }
    }

    fn stop(&mut self, at: usize) {
        self.units[at].is_running = false;
        for other in 0..self.units.len() {
            if other != at {
                self.units[other].push.handle_down(World::place(other, at));
            }
        }
    }

    fn connect(&mut self, a: usize, b: usize) {
        let pair = (a.min(b), a.max(b));
        let is_on = self.units[a].is_running && self.units[b].is_running;
        if a == b || !is_on || self.cut.contains(&pair) {
            return;
        }
        for (from, to) in [(a, b), (b, a)] {
            let place = World::place(from, to);
            let takes = self.old_version != Some(to);
            let now = self.now;
            self.units[from].push.handle_down(place);
            self.units[from].push.handle_up(now, place, takes);
        }
    }

    fn disconnect(&mut self, a: usize, b: usize) {
        self.cut.push((a.min(b), a.max(b)));
        for (from, to) in [(a, b), (b, a)] {
            self.units[from].push.handle_down(World::place(from, to));
        }
    }

    /// Counts a step; the fault may happen before it.
    fn step(&mut self) {
        self.steps += 1;
        match self.left {
            Some(0) => {
                self.left = None;
                (self.fault)(self);
            }
            Some(left) => self.left = Some(left - 1),
            None => {}
        }
    }

    /// Delivers messages and does tasks until there are none.
    fn run(&mut self) {
        loop {
            let mut idle = true;
            for from in 0..self.units.len() {
                while self.units[from].is_running
                    && let Some(task) = self.units[from].push.poll_task()
                {
                    idle = false;
                    self.step();
                    if self.units[from].is_running {
                        self.work(from, task);
                    }
                }
                while let Some(news) = self.units[from].push.poll_news() {
                    self.units[from].news.push(news);
                }
                for to in 0..self.units.len() {
                    if to != from && self.units[from].is_running {
                        idle &= !self.deliver(from, to);
                    }
                }
            }
            if idle {
                return;
            }
        }
    }

    fn deliver(&mut self, from: usize, to: usize) -> bool {
        let message = self.units[from]
            .push
            .poll_transmit(World::place(from, to), true);
        let Some(message) = message else { return false };
        self.step();
        let is_cut = self.cut.contains(&(from.min(to), from.max(to)));
        if self.units[to].is_running && self.units[from].is_running && !is_cut {
            let message = Message::decode(&message.encode()).unwrap();
            let (now, place) = (self.now, World::place(to, from));
            self.units[to].push.handle_message(now, place, message);
        }
        true
    }

    fn work(&mut self, at: usize, task: Task) {
        let now = self.now;
        let unit = &mut self.units[at];
        match task {
            Task::Check { id, text } => {
                let changes = vec![message::Changed {
                    key: "text".to_owned(),
                    what: format!("{} to {text}", unit.in_force),
                    needs_restart: false,
                }];
                let verdict = Verdict {
                    why_not: unit.unfit.map(str::to_owned),
                    changes,
                    more: 0,
                };
                unit.push.checked(now, id, verdict);
            }
            Task::Apply { id, text } => {
                unit.before = Some(std::mem::replace(&mut unit.in_force, text.to_string()));
                unit.push.applied(now, id, Ok(()));
                // As with a real unit, the streams are opened again.
                for other in 0..self.units.len() {
                    self.connect(at, other);
                }
            }
            Task::Return => {
                if let Some(before) = unit.before.take() {
                    unit.in_force = before;
                }
            }
            Task::Commit {
                id,
                text,
                generation,
                ..
            } => {
                unit.file = text.to_string();
                unit.before = None;
                unit.remembered = Some((generation, sum(&text)));
                unit.push.committed(now, id, Ok(sum(&text)));
            }
            Task::Remember { generation, sum } => unit.remembered = Some((generation, sum)),
        }
    }

    /// Lets time pass, with all that is due.
    fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            self.run();
            let running = self.units.iter().filter(|unit| unit.is_running);
            let due = running.filter_map(|unit| unit.push.poll_timeout()).min();
            let Some(due) = due.filter(|due| *due <= end) else {
                break;
            };
            self.now = self.now.max(due);
            for unit in self.units.iter_mut().filter(|unit| unit.is_running) {
                unit.push.handle_timeout(self.now);
            }
        }
        self.now = end;
    }

    /// Unit `at` pushes a text: up to the operator's decision.
    fn begin(&mut self, at: usize, text: &str) -> Result<u64, PushError> {
        self.next_id += 1;
        let push = &mut self.units[at].push;
        push.upload(0, text).unwrap();
        let id = push.begin(self.now, self.next_id)?;
        self.run();
        Ok(id)
    }

    /// Unit `at` pushes a text without a confirmation; returns whether it said that it is done.
    fn push(&mut self, at: usize, text: &str) -> bool {
        let Ok(id) = self.begin(at, text) else {
            return false;
        };
        let now = self.now;
        if self.units[at].push.apply(now, id, None, None).is_err() {
            return false;
        }
        self.run();
        self.units[at].push.progress(Some(id)).map(|it| it.1) == Some(super::Progress::Committed)
    }

    fn texts(&self) -> Vec<(&str, &str)> {
        let units = self.units.iter();
        units
            .map(|unit| (unit.in_force.as_str(), unit.file.as_str()))
            .collect()
    }

    #[track_caller]
    fn assert_all(&self, text: &str) {
        assert_eq!(self.texts(), vec![(text, text); self.units.len()]);
    }

    fn relation(&self, from: usize, to: usize) -> Relation {
        self.units[from].push.relation(World::place(from, to))
    }

    fn states(&self, at: usize) -> Vec<UnitState> {
        self.units[at]
            .push
            .units()
            .map(|(_, state, _)| state.clone())
            .collect()
    }
}

#[test]
fn a_push_reaches_the_files_of_all_units() {
    let mut world = World::new(3);
    assert!(world.push(1, NEW));
    world.assert_all(NEW);
    assert_eq!(world.relation(0, 2), Relation::Same);
    assert_eq!(world.states(1), vec![UnitState::Committed; 3]);
    // The next one may come from another unit.
    assert!(world.push(2, "newer"));
    world.assert_all("newer");
    assert_eq!(world.units[0].push.held().generation, 2);
}

#[test]
fn what_each_unit_would_change_is_known_before() {
    let mut world = World::new(2);
    world.begin(0, NEW).unwrap();
    world.assert_all(OLD);
    for (_, state, verdict) in world.units[0].push.units() {
        assert_eq!(*state, UnitState::Fits);
        assert_eq!(verdict.changes[0].what, "old to new");
    }
}

#[test]
fn without_a_confirmation_all_go_back() {
    let mut world = World::new(3);
    let id = world.begin(0, NEW).unwrap();
    let now = world.now;
    world.units[0]
        .push
        .apply(now, id, Some(Duration::from_secs(60)), None)
        .unwrap();
    world.run();
    assert_eq!(world.texts(), vec![(NEW, OLD); 3], "on trial");
    assert!(world.units.iter().all(|unit| unit.push.is_on_trial()));
    let error = world.units[1].push.accept().unwrap_err();
    assert_eq!(error, PushError::LedBy("a".to_owned()));
    world.wait(Duration::from_secs(59));
    assert_eq!(world.texts(), vec![(NEW, OLD); 3]);
    world.wait(Duration::from_secs(2));
    world.assert_all(OLD);
    let went_back = |unit: &Unit| {
        unit.news
            .iter()
            .any(|it| matches!(it, News::WentBack { .. }))
    };
    assert!(world.units.iter().all(went_back));
    assert!(world.push(0, NEW), "and another one can follow");
    world.assert_all(NEW);
}

#[test]
fn a_confirmation_makes_it_stay() {
    let mut world = World::new(3);
    let id = world.begin(0, NEW).unwrap();
    let now = world.now;
    world.units[0]
        .push
        .apply(now, id, Some(Duration::from_secs(60)), None)
        .unwrap();
    world.wait(Duration::from_secs(50));
    assert_eq!(world.units[0].push.accept(), Ok(id));
    world.wait(Duration::from_secs(100));
    world.assert_all(NEW);
}

#[test]
fn one_unit_that_can_not_have_it_is_enough() {
    let mut world = World::new(3);
    world.units[2].unfit = Some("no eth7");
    let id = world.begin(0, NEW).unwrap();
    let now = world.now;
    let error = world.units[0].push.apply(now, id, None, None).unwrap_err();
    assert_eq!(error.to_string(), "c: no eth7");
    world.wait(Duration::from_secs(1000));
    world.assert_all(OLD);
    // Not allowed, of an older version, too long.
    let mut world = World::new(2);
    world.units[1].push.set_peers([("a", false)].into_iter());
    assert!(!world.push(0, NEW));
    let why = format!("{:?}", world.states(0)[1]);
    assert!(why.contains("accept-push"), "{why}");
    let mut world = World::new(2);
    world.old_version = Some(1);
    world.connect(0, 1);
    assert!(!world.push(0, NEW));
    let why = format!("{:?}", world.states(0)[1]);
    assert!(why.contains("its version takes no configs"), "{why}");
    let long = "x".repeat(MAX_TEXT + 1);
    let refused = world.units[0].push.upload(0, &long);
    assert_eq!(refused, Err(PushError::TooLong));
    world.assert_all(OLD);
}

#[test]
fn a_unit_that_was_away_gets_it_when_it_returns() {
    let mut world = World::new(3);
    assert!(world.push(0, "first"));
    world.stop(2);
    assert!(world.push(0, NEW));
    assert_eq!(world.states(0)[2], UnitState::Away);
    world.start(2);
    world.run();
    world.assert_all(NEW);
    assert_eq!(world.units[2].push.held().generation, 2);
}

#[test]
fn a_conflict_is_told_and_never_merged() {
    let mut world = World::new(2);
    assert!(world.push(0, "first"));
    world.stop(1);
    assert!(world.push(0, NEW));
    world.units[1].file = "by hand".to_owned();
    world.start(1);
    world.wait(Duration::from_secs(1000));
    assert_eq!(world.texts(), [(NEW, NEW), ("by hand", "by hand")]);
    for (from, to) in [(0, 1), (1, 0)] {
        assert_eq!(world.relation(from, to), Relation::Conflict);
        let conflict = News::Conflict(World::place(from, to));
        let told = world.units[from].news.iter().filter(|it| **it == conflict);
        assert_eq!(told.count(), 1);
    }
    // An operator decides.
    assert!(world.push(1, "decided"));
    world.assert_all("decided");
    assert_eq!(world.relation(0, 1), Relation::Same);
}

#[test]
fn two_halves_that_were_both_pushed_to_are_a_conflict() {
    let mut world = World::new(2);
    assert!(world.push(0, "first"));
    world.disconnect(0, 1);
    assert!(world.push(0, "left") && world.push(1, "right"));
    world.cut.clear();
    world.connect(0, 1);
    world.wait(Duration::from_secs(1000));
    assert_eq!(world.texts(), [("left", "left"), ("right", "right")]);
    assert_eq!(world.relation(0, 1), Relation::Conflict);
}

#[test]
fn a_file_that_was_copied_by_hand_is_no_conflict() {
    let mut world = World::new(2);
    assert!(world.push(0, "first"));
    world.stop(1);
    assert!(world.push(0, NEW));
    world.units[1].file = NEW.to_owned();
    world.start(1);
    world.run();
    assert_eq!(world.relation(0, 1), Relation::Same);
    assert_eq!(world.units[1].remembered, world.units[0].remembered);
}

/// Whatever happens at whatever moment: a file is old or new, and new on a peer only if it is on
/// the leader; in the end all units have the leader's.
fn survives(fault: fn(&mut World), mend: fn(&mut World)) {
    let mut at = 0;
    loop {
        let mut world = World::new(3);
        assert!(world.push(0, OLD), "generation 1");
        let before = world.steps;
        (world.left, world.fault) = (Some(at), fault);
        world.push(0, NEW);
        let has_happened = world.left.take().is_none();
        for unit in &world.units {
            let texts = (unit.in_force.as_str(), unit.file.as_str());
            let is_half = texts == (OLD, NEW) && unit.is_running;
            assert!(!is_half, "step {at}: {} has {texts:?}", unit.name);
            assert!(unit.file == OLD || world.units[0].file == NEW, "step {at}");
        }
        world.wait(Duration::from_secs(100));
        mend(&mut world);
        world.wait(Duration::from_secs(100));
        let wanted = world.units[0].file.clone();
        assert_eq!(
            world.texts(),
            vec![(wanted.as_str(), wanted.as_str()); 3],
            "step {at}"
        );
        assert!(
            world.units.iter().all(|unit| !unit.push.is_on_trial()),
            "step {at}"
        );
        if !has_happened {
            assert!(at > 20, "{at} steps, of {before}");
            return;
        }
        at += 1;
    }
}

#[test]
fn a_leader_may_die_at_any_moment() {
    survives(|world| world.stop(0), |world| world.start(0));
}

#[test]
fn a_peer_may_die_at_any_moment() {
    survives(|world| world.stop(1), |world| world.start(1));
}

#[test]
fn a_link_may_be_cut_at_any_moment() {
    let mend = |world: &mut World| {
        world.cut.clear();
        world.connect(0, 2);
    };
    survives(|world| world.disconnect(0, 2), mend);
}

#[test]
fn a_stream_may_be_lost_with_its_messages_at_any_moment() {
    survives(|world| world.connect(0, 1), nothing);
}

/// A unit with a peer that is authenticated, but whose words are forged.
fn beside_a_liar(may_lead: bool) -> Push {
    let mut push = Push::default();
    push.set_peers([("liar", may_lead)].into_iter());
    push.set_config(Text::new(OLD, true));
    push.handle_up(Time::ZERO, PeerId(0), true);
    push
}

fn claims(push: &mut Push, generation: u64) {
    let held = Held {
        generation,
        sum: sum(OLD),
        is_changed: false,
    };
    push.handle_message(Time::ZERO, PeerId(0), Message::State(held));
}

fn offers(push: &mut Push, id: u64, generation: u64) {
    let offer = Offer {
        id,
        generation,
        length: NEW.len() as u32,
        is_returning: false,
    };
    push.handle_message(Time::ZERO, PeerId(0), Message::Offer(offer));
    let bytes = NEW.as_bytes().to_vec();
    push.handle_message(Time::ZERO, PeerId(0), Message::Part { id, bytes });
}

#[test]
fn a_peer_can_not_use_up_the_generations() {
    for may_lead in [false, true] {
        for claimed in [u64::MAX, u64::MAX - 1, REACH + 1] {
            let mut push = beside_a_liar(may_lead);
            claims(&mut push, claimed);
            assert_eq!(push.held().generation, 0, "it is not believed");
            offers(&mut push, 1, claimed);
            assert_eq!(push.poll_task(), None, "it is not looked at");
            push.upload(0, NEW).unwrap();
            push.begin(Time::ZERO, 7).unwrap();
            assert_eq!(push.generation(), Some(1));
        }
    }
}

/// What a peer says of its own counts for this unit only if that peer may configure it.
#[test]
fn a_peer_without_the_right_changes_no_generation() {
    let mut push = beside_a_liar(false);
    claims(&mut push, 5);
    assert_eq!((push.held().generation, push.poll_task()), (0, None));
    let mut push = beside_a_liar(true);
    claims(&mut push, 5);
    assert_eq!(push.held().generation, 5);
}

#[test]
fn what_waits_for_the_shell_has_a_bound() {
    let mut push = beside_a_liar(true);
    for n in 1..1000 {
        claims(&mut push, n);
        offers(&mut push, n, 2000 + n);
    }
    let tasks: Vec<Task> = std::iter::from_fn(|| push.poll_task()).collect();
    assert!(tasks.len() <= 2, "{} tasks", tasks.len());
    let last = Task::Check {
        id: 999,
        text: NEW.into(),
    };
    assert_eq!(tasks.last(), Some(&last));
}
