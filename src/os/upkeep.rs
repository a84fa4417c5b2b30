//! A thread that keeps the steering in place.
//!
//! Reading or changing links, routes or rules waits for a kernel lock (`rtnl`) that all network
//! namespaces of a machine share. Somebody else may hold it for seconds, for instance by starting a
//! hundred containers. So the loop never takes it while it runs. It sends orders to this thread,
//! which owns the [`Steering`], and receives the results.
//!
//! State that the kernel does not report is checked every [`AUDIT_INTERVAL`].

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use mio::{Events, Poll, Token, Waker};

use tandemgw_core::config::Config;
use tandemgw_core::control::BarrierView;
use tandemgw_core::flow::{Family, PortId};
use tandemgw_core::in_quotes::InQuotes;
use tandemgw_core::route::Spread;
use tandemgw_core::time::Time;

use super::barrier::BarrierWatch;
use super::clock;
use super::config_terms::{offloads, solicited_groups};
use super::multicast::Groups;
use super::netlink::{KernelRoute, Netlink, NetlinkError, watched};
use super::priority;
use super::skipped::Skipped;
use super::steering::{Disturbance, Restored, SetupError, Steering};
use super::tun::{Offloads, Tun};

/// How often one port is checked.
const AUDIT_INTERVAL: Duration = Duration::from_millis(100);

/// Ports of which the kernel is asked at an audit where it leads their packets, some 50 µs each:
/// all within four audits, where there are few.
const ASKED_AT_A_TIME: usize = 16;
const AUDITS_FOR_ALL: usize = 4;

/// As many times in a row it must be wrong, since something may just be repaired.
const TIMES_WRONG: u32 = 3;

/// The barrier is checked once per this many audits, and whether anything stops the packets.
const BARRIER_AUDITS: u32 = 5;

/// Somebody who removes the same thing again so soon continues until nothing is left (`ip route
/// flush` does, for half a minute).
const FIGHT: Duration = Duration::from_millis(50);

/// And must get the time to finish.
const TRUCE: Duration = Duration::from_millis(20);

/// Multicast groups joined or left before repairs get their turn: two system calls each.
const GROUPS_AT_A_TIME: usize = 16;

/// Neighbours that wait to be resolved; any more are skipped and requested again later.
const MOST_RESOLVED: usize = 256;

/// How often it is tried again to watch what the kernel lacks, in audits: a minute.
const WATCH_AUDITS: u32 = 600;

const ORDERS: Token = Token(0);
const BARRIER: Token = Token(1);
const IPSEC: Token = Token(2);
const FILTERS: Token = Token(3);

/// An order from the loop.
#[derive(Debug)]
pub(super) enum Order {
    /// Something may be gone.
    Disturb(Disturbance),
    /// Remove a route of somebody else from one of our tables.
    RemoveForeign(KernelRoute),
    /// The routes of a family with next hops on several ports are these.
    Follow(Family, Spread),
    /// Pools, forwards and multicast policies are those of this config: routes and multicast groups
    /// follow.
    Readdress(Arc<Config>),
    /// The interface of this port was recreated: join its multicast groups.
    Rejoin(PortId),
    /// Keep this neighbour at the interface of that number warm.
    Resolve(u32, IpAddr),
    /// A neighbour at the interface of that number has this hardware address.
    Neighbor(u32, IpAddr, [u8; 6]),
}

/// The result of an order or of a check.
pub(super) enum Report {
    /// Something was missing and is restored.
    Restored(Restored),
    /// A port, or something that concerns all ports, could not be repaired. It is tried again.
    NotRepaired(Option<PortId>, SetupError),
    /// A TUN device was gone; this one, with that number, is in its place.
    TunMade(PortId, Tun, u32),
    /// A TUN device is gone and could not be recreated.
    TunNotMade(PortId, io::Error),
    /// The barrier was incomplete for this reason, and was set again.
    BarrierRestored(String),
    /// The state of the barrier, if it changed.
    Barrier(BarrierView),
    /// A foreign route is removed, or why it is not.
    ForeignRemoved(KernelRoute, Option<NetlinkError>),
    /// Why the kernel does not follow the gateway's choice among next hops.
    NotFollowed(NetlinkError),
    /// Routes and multicast groups are as ordered, except these, with the reasons.
    Readdressed(Vec<String>),
    /// The kernel has come to lead the packets of a port elsewhere, in these words, or no longer
    /// does.
    Detour(PortId, Option<String>),
    /// By port: why no packet of it may take the fast path; none if they may.
    FastPathBarred(Vec<Option<String>>),
    /// By port: whether packets that the process has written would skip nothing if they left at
    /// once.
    SkipNothing(Vec<bool>),
    /// Somebody has taken the program of the fast path off the interface of that number.
    FastProgramGone(u32),
    /// Multicast groups of a recreated interface can't be joined, for this reason.
    NotJoined(String),
}

/// The loop's end of the thread.
pub(super) struct Upkeep {
    orders: Sender<Order>,
    wake: Waker,
    reports: Receiver<Report>,
    resolving: Arc<AtomicUsize>,
    thread: JoinHandle<Steering>,
}

impl Upkeep {
    /// Starts the thread, which wakes the poll of `loop_waker` after each report. Without a fast
    /// path there is nothing `skipped`.
    ///
    /// # Errors
    /// If the kernel can't create a thread, a descriptor or a netlink socket.
    pub(super) fn begin(
        steering: Steering,
        skipped: Option<Skipped>,
        groups: Vec<Groups>,
        config: &Config,
        loop_waker: &Arc<Waker>,
    ) -> io::Result<Upkeep> {
        let poll = Poll::new()?;
        let wake = Waker::new(poll.registry(), ORDERS)?;
        let (orders, ordered) = channel();
        let (told, reports) = channel();
        let resolving = Arc::new(AtomicUsize::new(0));
        let keeper = Keeper {
            steering,
            groups,
            readdressing: None,
            netlink: Netlink::open()?,
            watch: watched(
                poll.registry(),
                (BARRIER, "barrier"),
                BarrierWatch::open(&config.node.name),
            ),
            skipped,
            poll,
            orders: ordered,
            resolving: Arc::clone(&resolving),
            reports: told,
            loop_waker: Arc::clone(loop_waker),
            offloads: config.ports.iter().map(offloads).collect(),
            next_audit: clock::now() + AUDIT_INTERVAL,
            audits: 0,
            restored: BTreeMap::new(),
            truce: None,
            failed: BTreeSet::new(),
            misled: BTreeMap::new(),
            next_asked: 0,
            barrier_changed: true,
            barrier: BarrierView::default(),
        };
        let thread = thread::Builder::new()
            .name("upkeep".to_owned())
            .spawn(move || keeper.run())?;
        Ok(Upkeep {
            orders,
            wake,
            reports,
            resolving,
            thread,
        })
    }

    /// Sends an order. Orders are carried out in the order of the calls.
    pub(super) fn order(&self, order: Order) {
        if matches!(order, Order::Resolve(..) | Order::Neighbor(..)) {
            if self.resolving.load(Ordering::Relaxed) >= MOST_RESOLVED {
                return;
            }
            self.resolving.fetch_add(1, Ordering::Relaxed);
        }
        // If the thread is gone, `next_report` says so.
        let _ = self.orders.send(order);
        if let Err(error) = self.wake.wake() {
            log::error!("upkeep not woken error={}", InQuotes(&error));
        }
    }

    /// The next report, if there is one.
    ///
    /// # Errors
    /// If the thread has ended, which happens only by a panic: nothing would be repaired any
    /// longer.
    pub(super) fn next_report(&self) -> io::Result<Option<Report>> {
        match self.reports.try_recv() {
            Ok(report) => Ok(Some(report)),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(io::Error::other(
                "the thread that keeps rules and routes in place has failed",
            )),
        }
    }

    /// Ends the thread after its current work; none if it has failed.
    pub(super) fn end(self) -> Option<Steering> {
        let Upkeep {
            orders,
            wake,
            thread,
            ..
        } = self;
        drop(orders);
        if let Err(error) = wake.wake() {
            log::error!("upkeep not woken error={}", InQuotes(&error));
        }
        thread.join().ok()
    }
}

/// The thread's end.
struct Keeper {
    steering: Steering,
    /// By port.
    groups: Vec<Groups>,
    /// Failures since new addresses were ordered, until they are reported.
    readdressing: Option<Vec<String>>,
    netlink: Netlink,
    poll: Poll,
    watch: Option<BarrierWatch>,
    /// None if there is no fast path.
    skipped: Option<Skipped>,
    orders: Receiver<Order>,
    resolving: Arc<AtomicUsize>,
    reports: Sender<Report>,
    loop_waker: Arc<Waker>,
    /// By port.
    offloads: Vec<Offloads>,
    next_audit: Time,
    audits: u32,
    /// The last restoration for each port, and when.
    restored: BTreeMap<Option<PortId>, (Time, Vec<String>)>,
    /// Nothing is restored until then.
    truce: Option<Time>,
    /// Ports that could not be repaired: tried again at the next audit.
    failed: BTreeSet<PortId>,
    /// Ports whose packets the kernel leads elsewhere: how often in a row that was so.
    misled: BTreeMap<PortId, u32>,
    /// The port that the kernel is asked about next.
    next_asked: usize,
    /// The watch may have something to report.
    barrier_changed: bool,
    /// The last report of it.
    barrier: BarrierView,
}

impl Keeper {
    fn run(mut self) -> Steering {
        if let Err(error) = priority::be_ordinary() {
            log::debug!("priority of upkeep not lowered error={}", InQuotes(&error));
        }
        let mut events = Events::with_capacity(4);
        self.watch_for_skipped();
        self.look_for_skipped();
        loop {
            // Orders first: a repair must know everything that was lost.
            loop {
                match self.orders.try_recv() {
                    Ok(order) => self.obey(order),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return self.steering,
                }
            }
            self.look_around(clock::now());
            self.wait(&mut events);
        }
    }

    fn wait(&mut self, events: &mut Events) {
        let now = clock::now();
        let is_busy = self.barrier_changed
            || self.groups.iter().any(Groups::is_pending)
            || self.steering.is_disturbed() && self.truce.is_none();
        let due = self
            .truce
            .map_or(self.next_audit, |t| t.min(self.next_audit));
        let timeout = match is_busy {
            true => Duration::ZERO,
            false => due.since(now),
        };
        match self.poll.poll(events, Some(timeout)) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                log::error!("upkeep can't wait error={}", InQuotes(&error));
                thread::sleep(TRUCE);
            }
            _ => {}
        }
        let has = |token| events.iter().any(|event| event.token() == token);
        self.barrier_changed |= has(BARRIER);
        if has(IPSEC) {
            self.skipped.iter_mut().for_each(Skipped::hear_of_policies);
            self.look_for_skipped();
        }
        if has(FILTERS) {
            self.skipped.iter_mut().for_each(Skipped::hear_of_filters);
            self.tell_of_exits();
        }
    }

    fn watch_for_skipped(&mut self) {
        let registry = self.poll.registry();
        let skipped = self.skipped.iter_mut();
        skipped.for_each(|it| it.watch(registry, IPSEC, FILTERS));
    }

    /// Looks for what the fast path would skip, and tells if that has changed.
    fn look_for_skipped(&mut self) {
        let Some(skipped) = &mut self.skipped else {
            return;
        };
        let has_rules = self.steering.has_foreign_rules();
        let found = skipped.look(has_rules, self.steering.posts());
        let gone = skipped.look_for_program(self.steering.posts());
        self.tell_of_exits();
        if let Some(found) = found {
            self.tell(Report::FastPathBarred(found));
        }
        for link in gone {
            self.tell(Report::FastProgramGone(link));
        }
    }

    /// Tells by which exits packets may leave, if that has changed.
    fn tell_of_exits(&mut self) {
        let skipped = self.skipped.as_mut();
        if let Some(ports) = skipped.and_then(Skipped::skip_nothing_if_new) {
            self.tell(Report::SkipNothing(ports));
        }
    }

    fn tell(&self, report: Report) {
        // If the loop has ended, nobody needs to know.
        let _ = self.reports.send(report);
        if let Err(error) = self.loop_waker.wake() {
            log::error!("loop not woken error={}", InQuotes(&error));
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Disturb(disturbance) => self.steering.disturb(disturbance),
            Order::RemoveForeign(route) => {
                let error = self.steering.remove_foreign(&route).err();
                self.tell(Report::ForeignRemoved(route, error));
            }
            Order::Follow(family, spread) => {
                if let Err(error) = self.steering.follow(family, &spread) {
                    self.tell(Report::NotFollowed(error));
                }
            }
            Order::Readdress(config) => {
                let edits = self.steering.readdress(&config);
                let done = edits.iter().map(|edit| self.steering.carry_out(edit));
                let errors = done.filter_map(Result::err);
                let warnings =
                    errors.map(|error| format!("the route of an address or network: {error}"));
                self.readdressing
                    .get_or_insert_default()
                    .extend(warnings.collect::<Vec<_>>());
                let ports = config.ports.iter().enumerate();
                for (groups, (index, port)) in self.groups.iter_mut().zip(ports) {
                    groups.set(solicited_groups(&config, port));
                    groups.receive_all(config.has_multicast(PortId::from_index(index)));
                }
            }
            Order::Rejoin(port) => {
                if let Some(groups) = self.groups.get_mut(port.index()) {
                    groups.rejoin();
                }
            }
            Order::Resolve(link, addr) => {
                self.resolving.fetch_sub(1, Ordering::Relaxed);
                if let Err(error) = self.netlink.resolve(link, addr) {
                    log::debug!("neighbour not resolved error={}", InQuotes(&error));
                }
            }
            Order::Neighbor(link, addr, mac) => {
                self.resolving.fetch_sub(1, Ordering::Relaxed);
                if let Err(error) = self.netlink.set_neighbour(link, addr, mac) {
                    log::debug!("neighbour not set error={}", InQuotes(&error));
                }
            }
        }
    }

    /// Does the checks that are due, and repairs one thing, if one may be broken.
    fn look_around(&mut self, now: Time) {
        if std::mem::take(&mut self.barrier_changed)
            && let Some(watch) = &mut self.watch
        {
            let look = watch.look();
            self.barrier_changed = look.more;
            if look.others_changed {
                self.steering.note_ruleset_changed();
                let skipped = self.skipped.iter_mut();
                skipped.for_each(Skipped::note_filters_changed);
                self.tell_of_exits();
            }
            if look.changed {
                self.repair_barrier();
            }
        }
        if now >= self.next_audit {
            self.next_audit = now + AUDIT_INTERVAL;
            self.audit();
        }
        if self.skipped.as_ref().is_some_and(|it| it.is_due(now)) {
            self.look_for_skipped();
        }
        self.change_groups();
        self.truce.take_if(|until| *until <= now);
        if !self.steering.is_disturbed() || self.truce.is_some() {
            return;
        }
        let (restored, result) = self.steering.repair_some();
        let port = restored.port;
        if !restored.is_empty() {
            self.note_restored(now, &restored);
            self.tell(Report::Restored(restored));
        }
        match (port, result) {
            (_, Ok(())) => {}
            (Some(port), Err(SetupError::NoTun(name))) => self.reopen_tun(port, &name),
            (port, Err(error)) => {
                self.failed.extend(port);
                self.tell(Report::NotRepaired(port, error));
            }
        }
    }

    /// Joins and leaves some of the multicast groups. The result is reported when all are done.
    fn change_groups(&mut self) {
        let mut pending = self.groups.iter_mut().filter(|groups| groups.is_pending());
        if let Some(groups) = pending.next()
            && let Err(error) = groups.change_some(GROUPS_AT_A_TIME)
        {
            let warning = format!("multicast groups on {}: {error}", groups.interface());
            match &mut self.readdressing {
                Some(warnings) => warnings.push(warning),
                None => self.tell(Report::NotJoined(warning)),
            }
        }
        if !self.groups.iter().any(Groups::is_pending)
            && let Some(warnings) = self.readdressing.take()
        {
            self.tell(Report::Readdressed(warnings));
        }
    }

    /// Records what was restored. If the same thing was restored just before, pauses repairs for a
    /// moment.
    fn note_restored(&mut self, now: Time, restored: &Restored) {
        let mut what = restored.what.clone();
        what.extend_from_slice(&restored.by_kernel);
        let last = self.restored.get(&restored.port);
        let is_again = last.is_some_and(|(at, before)| {
            now.since(*at) < FIGHT && what.iter().any(|what| before.contains(what))
        });
        if is_again {
            self.truce = Some(now + TRUCE);
        }
        self.restored.insert(restored.port, (now, what));
    }

    fn audit(&mut self) {
        let audits = self.audits;
        self.audits = audits.wrapping_add(1);
        let ports = self.offloads.len().max(1) as u32;
        // Before what can't be repaired is tried again.
        self.ask_for_detours();
        for port in std::mem::take(&mut self.failed) {
            self.steering.disturb(Disturbance::Port(port));
        }
        self.steering.audit(PortId((audits % ports) as u16));
        if audits.is_multiple_of(BARRIER_AUDITS) {
            self.repair_barrier();
            self.steering.look_for_obstacles();
            self.look_for_skipped();
        }
        if audits.is_multiple_of(WATCH_AUDITS) {
            self.watch_for_skipped();
        }
    }

    /// Asks the kernel about some ports where it leads their packets, unless something is just
    /// being repaired.
    fn ask_for_detours(&mut self) {
        if self.steering.is_disturbed() {
            return;
        }
        let ports = self.offloads.len();
        let count = ports.div_ceil(AUDITS_FOR_ALL).min(ASKED_AT_A_TIME);
        let next = (self.next_asked..self.next_asked + count).map(|index| index % ports);
        let next = next.map(PortId::from_index);
        // Those in doubt each time.
        let asked: BTreeSet<PortId> = next.chain(self.misled.keys().copied()).collect();
        self.next_asked = (self.next_asked + count) % ports.max(1);
        for port in asked {
            let detour = self.steering.find_detour(port);
            let times = self.misled.get(&port).copied().unwrap_or(0);
            match detour {
                None => {
                    if self.misled.remove(&port).is_some() && times >= TIMES_WRONG {
                        self.tell(Report::Detour(port, None));
                    }
                }
                Some(why) => {
                    self.misled.insert(port, times.saturating_add(1));
                    if times + 1 == TIMES_WRONG {
                        self.tell(Report::Detour(port, Some(why)));
                    }
                }
            }
        }
    }

    fn repair_barrier(&mut self) {
        if let Some(wrong) = self.steering.repair_barrier() {
            self.tell(Report::BarrierRestored(wrong));
        }
        let view = BarrierView {
            why_not: self.steering.barrier_fault().map(str::to_owned),
            stopped: self.steering.stopped(),
        };
        if view != self.barrier {
            self.barrier = view.clone();
            self.tell(Report::Barrier(view));
        }
    }

    /// Recreates a TUN device that somebody has deleted or moved to another namespace.
    fn reopen_tun(&mut self, port: PortId, name: &str) {
        let offloads = self.offloads[port.index()];
        let made = Tun::open(name, offloads).and_then(|tun| match self.netlink.link(name) {
            Ok(Some(link)) => Ok((tun, link.index)),
            Ok(None) => Err(io::ErrorKind::NotFound.into()),
            Err(error) => Err(io::Error::other(error)),
        });
        match made {
            Ok((tun, index)) => {
                self.steering.replace_tun(port, index);
                self.tell(Report::TunMade(port, tun, index));
            }
            Err(error) => {
                self.failed.insert(port);
                self.tell(Report::TunNotMade(port, error));
            }
        }
    }
}
