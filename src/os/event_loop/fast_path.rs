//! Carries out what the gateway decides about the fast path.

use std::collections::BTreeMap;

use tandemgw_core::config::{Config, Port};
use tandemgw_core::control::FastPathState;
use tandemgw_core::flow::{MAX_GROUPS, PortId};
use tandemgw_core::in_quotes::InQuotes;
use tandemgw_core::time::Time;

use super::super::fast_path::{Arrivals, Attached, FastPath, Program, Taken, Unavailable};
use super::super::netlink::Netlink;
use super::super::packet_socket::interface_index;
use super::super::skipped::{self, Own, Skipped};
use super::super::worker::{self, Job, Progress};
use super::Shell;

/// The program, and the interfaces that it is at.
#[derive(Default)]
pub struct FastPorts {
    /// None if no port wants it, or why there is none.
    kernel: Option<Result<FastPath, String>>,
    /// By the number of the interface.
    at: BTreeMap<u32, Attached>,
    /// The programs at TUN devices; none where the kernel refuses one.
    tuns: BTreeMap<TunPlace, Option<Attached>>,
    /// By port; none if the config does not ask for the program there.
    ports: Vec<Option<FastPort>>,
    attaching: Option<Attaching>,
    /// By port: why no packet of it may take the fast path.
    barred: Vec<Option<String>>,
    /// By port: whether the kernel does nothing to forwarded packets that an exit would skip.
    skip_nothing: Vec<bool>,
    /// The longest packets that may leave by exits, in bytes.
    longest: u32,
}

/// A port that wants the program.
#[derive(Clone, Default)]
struct FastPort {
    /// The number of its interface; 0, which no interface has, if none was seen yet.
    interface: u32,
    /// The number of its TUN device.
    tun: u32,
    /// Why the program can't be there.
    failed: Option<String>,
}

/// Where a program can be.
#[derive(Clone, Copy)]
enum Place {
    /// The interface of a port.
    Port(u32),
    /// The TUN device of a port.
    Tun(TunPlace),
}

/// The number of a TUN device, and which of its two programs.
type TunPlace = (u32, End);

/// What a program at a TUN device is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    /// What the process has written leaves by it.
    Exit,
    /// What is for the process comes by it.
    Entrance,
}

impl End {
    const ALL: [End; 2] = [End::Exit, End::Entrance];

    fn program(self, kernel: &FastPath) -> Option<&Program> {
        match self {
            End::Exit => kernel.exit(),
            End::Entrance => kernel.entrance(),
        }
    }
}

/// A program is being put at an interface, which waits for the kernel's lock on interfaces.
struct Attaching {
    place: Place,
    job: Job<Result<Attached, Unavailable>>,
}

impl FastPorts {
    /// Loads the program if a port of `config` wants it: that needs a right which is given up
    /// afterwards.
    pub fn open(config: &Config) -> FastPorts {
        let wants = |port: &Port| port.offload.wants_fast_path();
        if !config.ports.iter().any(wants) {
            return FastPorts::default();
        }
        let kernel = FastPath::load(config.node.max_sessions, MAX_GROUPS as u32);
        let ports = config.ports.iter();
        FastPorts {
            kernel: Some(kernel.map_err(|error| error.to_string())),
            ports: ports
                .map(|port| wants(port).then(FastPort::default))
                .collect(),
            ..FastPorts::default()
        }
    }

    /// What the program takes of the packets of the ports.
    pub(super) fn taken(&self) -> Option<Taken> {
        let kernel = self.kernel.as_ref()?.as_ref();
        kernel.ok().map(FastPath::taken)
    }

    /// Looks for what the program would skip; none without a program.
    pub(super) fn skipped(&self, config: &Config) -> Option<Skipped> {
        let kernel = self.kernel.as_ref()?.as_ref().ok()?;
        let number = |program: Option<&Program>| program?.number().ok();
        let own = Own {
            port: number(Some(kernel.program())),
            exit: number(kernel.exit()),
            entrance: number(kernel.entrance()),
        };
        Some(Skipped::new(config, own))
    }

    /// The ring by which packets come to the process; none without the program at TUN devices.
    pub(super) fn arrivals(&mut self) -> Option<&mut Arrivals> {
        match &mut self.kernel {
            Some(Ok(kernel)) => kernel.arrivals(),
            _ => None,
        }
    }

    /// The ring can't be used.
    pub(super) fn lose_entrance(&mut self) {
        if let Some(Ok(kernel)) = &mut self.kernel {
            kernel.lose_entrance();
        }
    }

    /// The port that has a TUN device.
    pub(super) fn port_of(&self, tun: u32) -> Option<PortId> {
        let is_it = |port: &Option<FastPort>| port.as_ref().is_some_and(|port| port.tun == tun);
        self.ports.iter().position(is_it).map(PortId::from_index)
    }

    /// Why packets of a port may not take it.
    fn bar(&self, port: PortId) -> Option<&str> {
        self.barred.get(port.index())?.as_deref()
    }

    /// A place where a program is missing. TUN devices come first: a port that shows its program
    /// has all there is.
    fn missing(&self) -> Option<Place> {
        let ports = || self.ports.iter().flatten();
        let is_missing = |port: &&FastPort| {
            port.interface != 0 && port.failed.is_none() && !self.at.contains_key(&port.interface)
        };
        let Some(Ok(kernel)) = &self.kernel else {
            return None;
        };
        let ends = End::ALL
            .into_iter()
            .filter(|end| end.program(kernel).is_some());
        let tuns = ports().filter(|port| port.tun != 0);
        let tuns = tuns.flat_map(|port| ends.clone().map(|end| (port.tun, end)));
        let mut tuns = tuns.filter(|place| !self.tuns.contains_key(place));
        let port = || ports().find(is_missing);
        let tun = tuns.next().map(Place::Tun);
        tun.or_else(|| port().map(|port| Place::Port(port.interface)))
    }

    /// The TUN device of a port, if a program is at that end of it and may be used: its packets
    /// would skip nothing.
    fn usable(&self, port: PortId, end: End) -> Option<u32> {
        let tun = self.ports.get(port.index())?.as_ref()?.tun;
        let has_program = matches!(self.tuns.get(&(tun, end)), Some(Some(_)));
        let skips_nothing = self.skip_nothing.get(port.index()) == Some(&true);
        (has_program && skips_nothing).then_some(tun)
    }

    /// Whether packets of the process may leave by the exit of a port.
    fn may_leave(&self, port: PortId) -> bool {
        self.usable(port, End::Exit).is_some() && self.state(port) == FastPathState::On
    }

    /// The state of a port.
    fn state(&self, port: PortId) -> FastPathState {
        let Some(Some(wanted)) = self.ports.get(port.index()) else {
            return FastPathState::Off;
        };
        let why = match &self.kernel {
            None => return FastPathState::Off,
            Some(Err(why)) => why.as_str(),
            Some(Ok(_)) => match (&wanted.failed, self.bar(port)) {
                (Some(why), _) => why.as_str(),
                (None, Some(why)) => why,
                (None, None) if self.at.contains_key(&wanted.interface) => {
                    return FastPathState::On;
                }
                (None, None) => "it is not attached yet",
            },
        };
        FastPathState::Unavailable(why.to_owned())
    }

    /// Takes out the programs at interfaces that no port has any more.
    fn take_unused(&mut self) -> Vec<Attached> {
        let is_used = |number: &u32| {
            let mut ports = self.ports.iter().flatten();
            ports.any(|port| port.interface == *number)
        };
        let all = std::mem::take(&mut self.at);
        let (used, unused): (BTreeMap<_, _>, BTreeMap<_, _>) =
            all.into_iter().partition(|(number, _)| is_used(number));
        self.at = used;
        unused.into_values().collect()
    }
}

impl Shell {
    /// Begins to use the fast path where there is one. Call it before [`Shell::run`].
    pub fn use_fast_path(&mut self, fast: FastPorts) {
        self.fast = fast;
        self.register_arrivals();
        self.remove_left_filters();
        match &self.fast.kernel {
            None => return,
            Some(Ok(kernel)) => {
                let knows_ipv6 = kernel.knows_ipv6();
                self.gateway.use_fast_path(kernel.memory(), knows_ipv6);
            }
            Some(Err(why)) => log::warn!(
                "no fast path why={} effect=\"all packets go through the process\"",
                InQuotes(why)
            ),
        }
        // Until it is known what it would skip.
        self.fast.barred = skipped::unknown(self.gateway.config());
        self.gateway.bar_fast_path(self.fast.barred.clone());
        for (index, wanted) in self.fast.ports.iter_mut().enumerate() {
            if let Some(port) = wanted {
                port.interface = self.ports[index].socket.interface();
                port.tun = number_of(self.ports[index].tun.name());
            }
        }
        self.show_fast_ports();
    }

    /// A process that was killed may have left the program as a filter of tc, where none is wanted
    /// now.
    fn remove_left_filters(&self) {
        let Ok(mut netlink) = Netlink::open() else {
            return;
        };
        for port in &self.ports {
            if let Err(error) = netlink.remove_program(port.socket.interface(), false) {
                log::debug!("left filter not removed error={}", InQuotes(&error));
            }
        }
    }

    /// The interface of a port is gone; another one may come with its number, or this one without
    /// the program.
    pub(super) fn lose_fast_number(&mut self, port: PortId) {
        let Some(Some(known)) = self.fast.ports.get_mut(port.index()) else {
            return;
        };
        let gone = std::mem::take(&mut known.interface);
        known.failed = None;
        if let Some(attached) = self.fast.at.remove(&gone) {
            worker::discard(&self.waker, vec![attached]);
        }
        self.gateway.set_fast_interface(port, None);
        self.show_fast_ports();
    }

    /// Somebody has taken the program off an interface: it comes back.
    pub(super) fn lose_fast_program(&mut self, interface: u32) {
        let Some(attached) = self.fast.at.remove(&interface) else {
            return;
        };
        if let Some(attached) = attached.taken_off() {
            worker::discard(&self.waker, vec![attached]);
        }
        for (index, port) in self.fast.ports.iter().enumerate() {
            if port
                .as_ref()
                .is_some_and(|port| port.interface == interface)
            {
                let port = PortId::from_index(index);
                self.gateway.set_fast_interface(port, None);
                log::warn!(
                    "fast path attached again port={} why=\"somebody else has taken its program off\"",
                    self.gateway.port_name(port)
                );
            }
        }
        self.show_fast_ports();
    }

    /// Lets packets leave by exits, and come by entrances, at the ports where they would skip
    /// nothing, and at no others.
    pub(super) fn set_ends(&mut self) {
        self.fast.longest = self.gateway.shortest_route_mtu();
        let Some(Ok(kernel)) = &self.fast.kernel else {
            return;
        };
        for (index, known) in self.fast.ports.iter().enumerate() {
            let (Some(known), port) = (known, PortId::from_index(index)) else {
                continue;
            };
            match self.fast.may_leave(port) && self.gateway.is_ethernet(port) {
                true => {
                    kernel
                        .exits()
                        .open(known.tun, known.interface, self.fast.longest);
                }
                false => kernel.exits().close(known.tun),
            }
        }
        for index in 0..self.ports.len() {
            let tun = self.fast.usable(PortId::from_index(index), End::Entrance);
            self.allow_entrance(index, tun);
        }
    }

    /// A route may ask for shorter packets than any before.
    pub(super) fn follow_route_mtus(&mut self) {
        if self.fast.longest != self.gateway.shortest_route_mtu() {
            self.set_ends();
        }
    }

    /// The TUN device of a port has this number now.
    pub(super) fn note_fast_tun(&mut self, port: PortId, number: u32) {
        let Some(Some(known)) = self.fast.ports.get_mut(port.index()) else {
            return;
        };
        let gone = std::mem::replace(&mut known.tun, number);
        if let Some(Ok(kernel)) = &self.fast.kernel {
            kernel.exits().close(gone);
        }
        let attached = End::ALL.map(|end| self.fast.tuns.remove(&(gone, end)));
        if attached.iter().any(Option::is_some) {
            worker::discard(&self.waker, attached);
        }
        self.set_ends();
    }

    /// Shows how the ports forward, and lets packets leave accordingly.
    fn show_fast_ports(&mut self) {
        self.set_ends();
        for (index, port) in self.view.ports.iter_mut().enumerate() {
            port.fast_path = self.fast.state(PortId::from_index(index));
        }
    }

    /// The kernel does something with forwarded packets that the program would skip, or no longer.
    pub(super) fn bar_fast_path(&mut self, barred: Vec<Option<String>>) {
        self.gateway.bar_fast_path(barred.clone());
        let before = std::mem::replace(&mut self.fast.barred, barred);
        if matches!(self.fast.kernel, Some(Ok(_))) {
            self.tell_barred(&before);
        }
        self.show_fast_ports();
    }

    /// By port: whether the kernel does nothing to forwarded packets that an exit would skip.
    pub(super) fn set_skip_nothing(&mut self, skip_nothing: Vec<bool>) {
        self.fast.skip_nothing = skip_nothing;
        self.set_ends();
    }

    /// Tells what bars ports that was not said of them before: a line for each cause.
    fn tell_barred(&self, before: &[Option<String>]) {
        let mut causes: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        let mut free = Vec::new();
        for (index, now) in self.fast.barred.iter().enumerate() {
            let (port, was) = (PortId::from_index(index), before.get(index));
            let was = was.and_then(|was| was.as_deref());
            let is_wanted = self.fast.ports[index].is_some();
            match now {
                _ if !is_wanted || was == now.as_deref() => {}
                Some(why) => causes
                    .entry(why)
                    .or_default()
                    .push(self.gateway.port_name(port)),
                None if was == Some(skipped::UNKNOWN) => {}
                None => free.push(self.gateway.port_name(port)),
            }
        }
        for (why, ports) in causes {
            // What concerns also ports that were put on the fast path expressly.
            let level = match why {
                skipped::IPSEC | skipped::RULES | skipped::UNKNOWN => log::Level::Warn,
                _ => log::Level::Info,
            };
            log::log!(
                level,
                "no fast path ports={} why={} effect=\"packets go through the process\"",
                ports.join(","),
                InQuotes(why)
            );
        }
        if !free.is_empty() {
            log::info!("fast path is used again ports={}", free.join(","));
        }
    }

    /// Sessions that have earned it get their entries.
    pub(super) fn enter_fast_path(&mut self, now: Time) {
        if self.gateway.has_fast_candidates() {
            let is_empty = self.fast.arrivals().is_none_or(|it| it.is_empty());
            let is_drained = is_empty && self.ready.tuns.next(0).is_none();
            self.gateway.poll_fast_path(now, is_drained);
        }
    }

    /// The interface of a port has this number now.
    pub(super) fn note_fast_number(&mut self, port: PortId, number: u32) {
        let Some(Some(known)) = self.fast.ports.get_mut(port.index()) else {
            return;
        };
        if known.interface == number || !matches!(self.fast.kernel, Some(Ok(_))) {
            return;
        }
        (known.interface, known.failed) = (number, None);
        self.gateway.set_fast_interface(port, None);
        match self.fast.at.contains_key(&number) {
            true => self.note_attached(number),
            false => self.show_fast_ports(),
        }
    }

    /// The program is at an interface: its port is in the fast path.
    fn note_attached(&mut self, number: u32) {
        for (index, port) in self.fast.ports.iter().enumerate() {
            if port.as_ref().is_some_and(|port| port.interface == number) {
                let port = PortId::from_index(index);
                self.gateway.set_fast_interface(port, Some(number));
            }
        }
        self.show_fast_ports();
    }

    /// Puts the programs at the interfaces where they are missing, one after the other.
    pub(super) fn attach_some(&mut self) {
        if let Some(Attaching { place, job }) = &self.fast.attaching {
            let (place, progress) = (*place, job.progress());
            let attached = match progress {
                Progress::UnderWay => return,
                Progress::Done(attached) => attached.map_err(|error| error.to_string()),
                Progress::Failed => Err("attaching the program failed".to_owned()),
            };
            self.fast.attaching = None;
            self.end_attaching(place, attached);
        }
        let Some(Ok(kernel)) = &self.fast.kernel else {
            return;
        };
        let Some(place) = self.fast.missing() else {
            return;
        };
        let program = match place {
            Place::Port(_) => Some(kernel.program()),
            Place::Tun((_, end)) => end.program(kernel),
        };
        let Some(program) = program.cloned() else {
            return;
        };
        let attach = move || match place {
            Place::Port(interface) => program.attach(interface),
            Place::Tun((tun, End::Exit)) => program.attach_link(tun),
            Place::Tun((tun, End::Entrance)) => program.attach_to_egress(tun),
        };
        match Job::begin(&self.waker, attach) {
            Ok(job) => self.fast.attaching = Some(Attaching { place, job }),
            Err(error) => self.end_attaching(place, Err(error.to_string())),
        }
        let unused = self.fast.take_unused();
        if !unused.is_empty() {
            worker::discard(&self.waker, unused);
        }
    }

    fn end_attaching(&mut self, place: Place, attached: Result<Attached, String>) {
        let interface = match place {
            Place::Port(interface) => interface,
            Place::Tun(place) => {
                // Without it packets take the longer way: nobody needs to do anything.
                let log = |why: &_| log::debug!("no program tun={place:?} why={}", InQuotes(why));
                let attached = attached.inspect_err(log).ok();
                let mut ports = self.fast.ports.iter().flatten();
                if ports.any(|port| port.tun == place.0) {
                    self.fast.tuns.insert(place, attached);
                } else {
                    worker::discard(&self.waker, attached);
                }
                return self.set_ends();
            }
        };
        match attached {
            Ok(attached) => {
                self.fast.at.insert(interface, attached);
                self.note_attached(interface);
            }
            Err(why) => {
                for (index, port) in self.fast.ports.iter_mut().enumerate() {
                    let Some(port) = port.as_mut().filter(|it| it.interface == interface) else {
                        continue;
                    };
                    // It is not tried again until the interface has another number.
                    port.failed = Some(why.clone());
                    log::warn!(
                        "no fast path port={} why={} effect=\"its packets go through the process\"",
                        self.gateway.port_name(PortId::from_index(index)),
                        InQuotes(&why)
                    );
                }
                self.show_fast_ports();
            }
        }
    }

    /// What the program counts, for whoever asks.
    pub(super) fn read_fast_counts(&mut self) {
        if let Some(Ok(kernel)) = &self.fast.kernel {
            self.view.fast_path.clear();
            self.view.fast_path.extend(kernel.counts());
        }
    }
}

/// The number of an interface; 0 if there is none of that name.
fn number_of(interface: &str) -> u32 {
    let number = interface_index(interface).map(libc::c_int::cast_unsigned);
    number.unwrap_or(0)
}
