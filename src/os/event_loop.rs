//! The event loop: waits for readable sources, feeds the core, carries out its outputs.
//!
//! Each wake: read the clock once; read each ready source up to a budget; drain the outputs; wait
//! until the core's next timeout. mio reports a source once when it becomes readable, so a source
//! that was not read until empty stays marked ready, and the next wait returns at once.

mod addresses;
mod fast_path;
mod notices;
mod order;
mod packets;
mod push;
mod ready;
mod reload;
mod sockets;
mod spread;
mod streams;
mod upkeep;

use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token, Waker};

use tandemgw_core::config::Config;
use tandemgw_core::control::{FastPathState, KeptConfig, PortIo, ShellView};
use tandemgw_core::event::Output;
use tandemgw_core::flow::{LinkId, PortId};
use tandemgw_core::gateway::Gateway;
use tandemgw_core::in_quotes::InQuotes;
use tandemgw_core::time::Time;

use super::client_slots::MAX_CLIENTS;
use super::clock;
use super::control_socket::ControlSocket;
use super::http::HttpServer;
use super::logging;
use super::memory::Reserve;
use super::monitor::{Monitor, Notice};
use super::multicast::Groups;
use super::neighbor_requests::NeighborRequests;
use super::packet_socket::PacketSocket;
use super::peers::Peers;
use super::probes::{MOST_MONITORS, Probes};
use super::service_manager::ServiceManager;
use super::signal::{Signal, Signals};
use super::state_file::StateFile;
use super::steering::Steering;
use super::timer::Timer;
use super::tun::Tun;
use super::upkeep::Upkeep;

pub use fast_path::FastPorts;
pub use push::recall;
use ready::Ready;

/// Frames read from one packet socket in a turn, and the time after which no more are read.
const FRAME_BUDGET: usize = 512;
const FRAME_TIME: Duration = Duration::from_micros(150);

const SIGNALS: Token = Token(0);
const MONITOR: Token = Token(1);
const TIMER: Token = Token(2);
const LINKS: usize = 3;
const WATCH: Token = Token(LINKS + MAX_LINKS);
const CONTROL: Token = Token(WATCH.0 + 1);
const HTTP: Token = Token(CONTROL.0 + 1 + MAX_CLIENTS);
const NEIGHBORS: Token = Token(HTTP.0 + 1 + MAX_CLIENTS);
/// Threads beside the loop have something to report.
const WORKER: Token = Token(NEIGHBORS.0 + 1);
/// Packets in the ring of the fast path, after the loop has begun to wait.
const ARRIVALS: Token = Token(WORKER.0 + 1);
/// The targets of `[[link-monitor]]`.
const PROBES: Token = Token(ARRIVALS.0 + 1);
const PORTS: usize = PROBES.0 + MOST_MONITORS;

/// `[[ha.link]]`s that a config can have.
const MAX_LINKS: usize = 8;

/// Everything the loop reads and writes.
pub struct Shell {
    poll: Poll,
    /// Ends the wait when a job beside the loop is done.
    waker: Arc<Waker>,
    gateway: Gateway,
    ports: Vec<Port>,
    view: ShellView,
    monitor: Monitor,
    /// Of routes with several next hops.
    followed: spread::Followed,
    neighbors: Option<NeighborRequests>,
    control: ControlSocket,
    http: Option<HttpServer>,
    signals: Signals,
    timer: Timer,
    service: ServiceManager,
    /// The kernel's part in forwarding.
    fast: FastPorts,
    peers: Option<Peers>,
    probes: Probes,
    batch: packets::Batch,
    /// By port.
    entrances: Vec<packets::Entrance>,
    /// Notices that the monitor has read, still to be handled.
    notices: std::vec::IntoIter<Notice>,
    ready: Ready,
    streams: streams::Streams,
    chores: sockets::Chores,
    reloading: reload::Reloading,
    pushing: push::Pushing,
    state: StateFile,
    /// None until the loop runs.
    upkeep: Option<Upkeep>,
    /// Memory for the next sessions; none until the loop runs.
    reserve: Option<Reserve>,
    /// How often it was asked to stop: the second time it no longer hands over.
    stops: u32,
}

/// The devices of one port.
pub struct Port {
    /// The TUN that packets come from and go to.
    pub tun: Tun,
    /// ARP and ND on the interface.
    pub socket: PacketSocket,
}

impl Shell {
    /// Registers all sources.
    ///
    /// # Errors
    /// If the kernel refuses a registration, or the control socket can't be opened.
    pub fn new(
        config: &Config,
        config_file: PathBuf,
        gateway: Gateway,
        mut ports: Vec<Port>,
        monitor: Monitor,
        mut signals: Signals,
        state: StateFile,
    ) -> io::Result<Shell> {
        let poll = Poll::new()?;
        let registry = poll.registry();
        let mut timer = Timer::new()?;
        registry.register(&mut timer, TIMER, Interest::READABLE)?;
        let peers = Peers::open(config, registry, |link| Token(LINKS + link.index()), WATCH)?;
        registry.register(&mut signals, SIGNALS, Interest::READABLE)?;
        registry.register(
            &mut SourceFd(&monitor.as_raw_fd()),
            MONITOR,
            Interest::READABLE,
        )?;
        for (index, port) in ports.iter_mut().enumerate() {
            registry.register(&mut port.tun, tun_token(index), Interest::READABLE)?;
            registry.register(&mut port.socket, socket_token(index), Interest::READABLE)?;
        }
        let path = &config.node.control_socket;
        let control = ControlSocket::open(path, registry, CONTROL).map_err(|error| {
            let what = format!("the control socket {}: {error}", path.display());
            io::Error::new(error.kind(), what)
        })?;
        let http = open_http(config, registry)?;
        let neighbors = addresses::open_requests(registry);
        let port_io = ports
            .iter()
            .map(|port| PortIo {
                offload: port.tun.offload(),
                fast_path: FastPathState::Off,
            })
            .collect();
        let waker = Arc::new(Waker::new(registry, WORKER)?);
        let ready = Ready::new(ports.len());
        let entrances = vec![packets::Entrance::default(); ports.len()];
        let streams = streams::Streams::open(config, registry)?;
        let chores = sockets::Chores::new(ports.len());
        Ok(Shell {
            poll,
            waker,
            gateway,
            ports,
            view: ShellView {
                config_file,
                ports: port_io,
                ..ShellView::default()
            },
            monitor,
            followed: spread::Followed::default(),
            neighbors,
            control,
            http,
            signals,
            timer,
            service: ServiceManager::from_environment(),
            fast: FastPorts::default(),
            peers,
            probes: Probes::new(PROBES),
            batch: packets::Batch::default(),
            entrances,
            notices: Vec::new().into_iter(),
            ready,
            streams,
            chores,
            reloading: reload::Reloading::default(),
            pushing: push::Pushing::default(),
            state,
            upkeep: None,
            reserve: None,
            stops: 0,
        })
    }

    /// The configs that are kept, the last one first.
    pub fn set_history(&mut self, kept: Vec<KeptConfig>) {
        self.view.history = kept;
    }

    /// Runs until a signal ends it. Without `[ha]` it is primary from the start. A thread keeps the
    /// steering in place meanwhile; it is returned unless that thread has failed.
    ///
    /// # Errors
    /// If the kernel refuses a wait or a thread; the process can't go on then.
    pub fn run(
        &mut self,
        mut steering: Steering,
        groups: Vec<Groups>,
    ) -> (io::Result<()>, Option<Steering>) {
        // Before it begins to work: this takes a while.
        self.reserve = Some(Reserve::begin(self.gateway.reserved_memory()));
        self.gateway.start(clock::now());
        self.ask_for_neighbors();
        self.follow_first(&mut steering);
        if let Some(taken) = self.fast.taken() {
            steering.set_taken(taken);
        }
        let config = self.gateway.config();
        let skipped = self.fast.skipped(config);
        match Upkeep::begin(steering, skipped, groups, config, &self.waker) {
            Ok(upkeep) => self.upkeep = Some(upkeep),
            Err(error) => return (Err(error), None),
        }
        let result = self.run_loop();
        self.stop_asking();
        (result, self.upkeep.take().and_then(Upkeep::end))
    }

    fn run_loop(&mut self) -> io::Result<()> {
        self.drain_outputs();
        log::info!("ready");
        let mut events = Events::with_capacity(256);
        let mut now = clock::now();
        while !self.has_ended() {
            self.wait(&mut events, now)?;
            now = clock::now();
            self.gateway.handle_wake(now);
            for event in &events {
                self.mark(now, event.token());
            }
            self.turn(now)?;
            self.service.turn_ended(now, &self.gateway);
            logging::tick(now);
        }
        if let Some(peers) = &mut self.peers {
            peers.close();
        }
        Ok(())
    }

    fn has_ended(&self) -> bool {
        match self.stops {
            0 => false,
            1 => self.gateway.is_gone(),
            _ => true,
        }
    }

    /// Ends the turn that began at `began`, and waits for something to do.
    fn wait(&mut self, events: &mut Events, began: Time) -> io::Result<()> {
        let now = clock::now();
        self.view.turns.observe(now.since(began));
        let timeout = match self.is_busy() {
            true => Some(Duration::ZERO),
            false => self.settle_arrivals(now),
        };
        if timeout.is_none() {
            let core = self.gateway.poll_timeout(now);
            let peers = self.peers.as_mut().and_then(Peers::timeout);
            let http = self.http.as_ref().and_then(HttpServer::timeout);
            let admin = [self.control.timeout(), self.service.timeout()];
            let others = admin.into_iter().chain([http, logging::timeout()]);
            let all = [core, peers].into_iter().chain(others);
            self.timer.set(all.flatten().min())?;
        }
        match self.poll.poll(events, timeout) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
            _ => Ok(()),
        }
    }

    fn is_busy(&self) -> bool {
        self.ready.any()
            || self.is_reload_due()
            || self.is_push_due()
            || self.chores.is_busy()
            || self.streams.is_busy()
            || self.peers.as_ref().is_some_and(Peers::is_busy)
            || self.http.as_ref().is_some_and(HttpServer::is_busy)
    }

    fn mark(&mut self, now: Time, token: Token) {
        match token {
            SIGNALS => self.read_signals(now),
            MONITOR => self.ready.monitor = true,
            NEIGHBORS => self.ready.neighbors = true,
            // Each turn looks at what they have to tell.
            WORKER | ARRIVALS => {}
            TIMER => self.timer.fired(),
            WATCH => {
                if let Some(peers) = &mut self.peers {
                    peers.mark_watch();
                }
            }
            Token(number) if number < CONTROL.0 => {
                if let Some(peers) = &mut self.peers {
                    peers.mark(LinkId((number - LINKS) as u8));
                }
            }
            token if self.control.owns(token) => self.control.mark(token),
            token if self.probes.mark(token) => {}
            token if self.streams.mark(token) => {}
            token if token.0 < PORTS => {
                if let Some(http) = &mut self.http {
                    http.mark(token);
                }
            }
            Token(number) => {
                let (index, is_socket) = ((number - PORTS) / 2, (number - PORTS) % 2 == 1);
                let set = if is_socket {
                    &mut self.ready.sockets
                } else {
                    &mut self.ready.tuns
                };
                set.insert(index);
            }
        }
    }

    /// One turn: each ready source up to its budget.
    fn turn(&mut self, now: Time) -> io::Result<()> {
        if std::mem::take(&mut self.ready.monitor) {
            self.read_monitor(now);
        }
        if std::mem::take(&mut self.ready.neighbors) {
            self.read_neighbor_requests(now);
        }
        self.read_reports(now)?;
        self.ask_some(now);
        self.do_chores();
        self.reserve_memory();
        self.attach_some();
        // The answers to a check before what comes by the links, of which there may be a flood.
        let mut next = self.ready.sockets.next(0);
        while let Some(index) = next {
            self.read_frames(now, index);
            next = self.ready.sockets.next(index + 1);
        }
        if let Some(peers) = &mut self.peers {
            peers.receive(now, &mut self.gateway);
            self.view.refused = Some(peers.refused());
        }
        while let Some((monitor, sequence)) = self.probes.poll_answer() {
            self.gateway.handle_target_answer(now, monitor, sequence);
        }
        // A takeover or a step-down comes before the packets that it concerns.
        self.drain_outputs();
        self.read_all_packets(now);
        self.read_streams(now);
        self.read_fast_counts();
        let registry = self.poll.registry();
        self.control
            .serve(registry, &mut self.gateway, &mut self.view, now);
        if let Some(http) = &mut self.http {
            http.serve(now, registry, &self.gateway, &self.view);
        }
        self.push_some(now);
        self.reload_some(now);
        let state = self.state.follow(self.gateway.maintenance(), &self.waker);
        if self.view.state_not_saved.as_deref() != state {
            self.view.state_not_saved = state.map(str::to_owned);
        }
        if self.gateway.poll_timeout(now).is_some_and(|at| at <= now) {
            self.gateway.handle_timeout(now);
        }
        self.enter_fast_path(now);
        // Routes that the gateway has just learned or removed.
        self.follow_routes();
        self.follow_route_mtus();
        self.drain_outputs();
        if let Some(peers) = &mut self.peers {
            peers.send(now, &mut self.gateway);
            self.drain_outputs();
        }
        Ok(())
    }

    fn read_frames(&mut self, now: Time, index: usize) {
        let mut frame = [0; LONGEST_FRAME];
        let began = clock::now();
        for number in 0..FRAME_BUDGET {
            if number % 16 == 15 && clock::now().since(began) >= FRAME_TIME {
                return;
            }
            match self.ports[index].socket.recv(&mut frame) {
                Ok(Some(length)) => {
                    self.gateway
                        .handle_frame(now, PortId::from_index(index), &frame[..length]);
                }
                // An error is that of the interface (down, removed); the monitor tells about it.
                Ok(None) | Err(_) => {
                    self.ready.sockets.remove(index);
                    return;
                }
            }
        }
    }

    fn read_signals(&mut self, now: Time) {
        let signals: Vec<Signal> = self.signals.pending().collect();
        for signal in signals {
            match signal {
                Signal::Stop => {
                    log::info!("stopping why=signal");
                    self.service.stopping();
                    self.stops = self.stops.saturating_add(1);
                    self.gateway.shut_down(now);
                }
                Signal::Reload => self.want_reload(),
            }
        }
    }

    fn drain_outputs(&mut self) {
        while let Some(output) = self.gateway.poll_output() {
            let sent = match &output {
                Output::Packet {
                    port,
                    bytes,
                    offload,
                } => self.ports[port.index()].tun.write_packet(bytes, *offload),
                Output::Frame { port, bytes } => self.ports[port.index()].socket.send(bytes),
                Output::Heartbeat { peer, link, bytes } => {
                    if let Some(peers) = &mut self.peers {
                        peers.send_heartbeat(*peer, *link, bytes);
                    }
                    Ok(())
                }
                Output::PassOn { peer, link, bytes } => {
                    let sent = match &mut self.peers {
                        Some(peers) => peers.pass_on(*peer, *link, bytes.clone()),
                        None => true,
                    };
                    if !sent {
                        self.gateway.handle_not_passed_on();
                    }
                    Ok(())
                }
                Output::Resolve { port, addr } => {
                    self.resolve(*port, *addr);
                    Ok(())
                }
                Output::Neighbor { port, addr, mac } => {
                    self.tell_neighbor(*port, *addr, *mac);
                    Ok(())
                }
                Output::Probe {
                    monitor,
                    sequence,
                    source,
                } => {
                    self.probe(*monitor, *sequence, *source);
                    Ok(())
                }
                Output::CloseStream { peer, link } => {
                    if let Some(peers) = &mut self.peers {
                        peers.close_stream(*peer, *link);
                    }
                    Ok(())
                }
            };
            if let Err(error) = sent {
                log::debug!(
                    "output not sent output=\"{output:?}\" error={}",
                    InQuotes(&error)
                );
                self.gateway.handle_output_failure();
            }
        }
    }
}

/// Listens for those who scrape the metrics, if the config says so.
fn open_http(config: &Config, registry: &Registry) -> io::Result<Option<HttpServer>> {
    let Some(metrics) = &config.metrics else {
        return Ok(None);
    };
    let server = HttpServer::open(metrics.listen, registry, HTTP).map_err(|error| {
        let what = format!(
            "the metrics on {}: {error}; choose another `listen` in [metrics]",
            metrics.listen
        );
        io::Error::new(error.kind(), what)
    })?;
    log::info!("metrics listen={}", metrics.listen);
    Ok(Some(server))
}

/// A jumbo frame. A longer frame is cut, and then refused as truncated.
const LONGEST_FRAME: usize = 9216;

fn tun_token(index: usize) -> Token {
    Token(PORTS + 2 * index)
}

fn socket_token(index: usize) -> Token {
    Token(PORTS + 2 * index + 1)
}
