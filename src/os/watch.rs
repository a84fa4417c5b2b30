//! A plain TCP connection to each peer over each link, which carries no data until its end.
//!
//! When a process dies, its kernel closes its connections at once, long before a heartbeat is
//! missed: the end of such a connection hints that the peer's process is gone. It is not
//! authenticated, so it is never more than a hint; without it the refusal of the next heartbeat
//! says the same a little later.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream as StdStream};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use socket2::{Domain, Protocol, Socket, Type};

use super::process;
use tandemgw_core::config::{Ha, HaLink, HaPeer};
use tandemgw_core::flow::{LinkId, PeerId};
use tandemgw_core::in_quotes::InQuotes;

/// Connections accepted on one link in a turn.
const ACCEPT_BUDGET: usize = 16;
/// More than there are connections and listeners (8 links, 15 peers): one poll returns all events.
const MAX_EVENTS: usize = 256;

/// The connections to all peers; a nested poll, so that the loop has one source to wait for.
pub struct Watch {
    poll: Poll,
    events: Events,
    links: Vec<HaLink>,
    /// By link; `None` if its port is taken.
    listeners: Vec<Option<TcpListener>>,
    /// By place; one without a name if nobody has it.
    peers: Vec<WatchedPeer>,
    node: String,
}

#[derive(Default)]
struct WatchedPeer {
    name: String,
    /// This unit dials.
    dialled: bool,
    /// By link.
    addresses: Vec<SocketAddr>,
    lines: Vec<Option<Line>>,
}

struct Line {
    stream: TcpStream,
    established: bool,
}

/// The meaning of an event for a line.
#[derive(Clone, Copy, PartialEq, Eq)]
enum LineFate {
    Lives,
    /// It was up, and the other side ended it.
    Ended,
    /// It never came up, or the other side hung up on purpose.
    Useless,
}

impl Watch {
    /// Listens on all links, by TCP on the port that QUIC uses.
    ///
    /// # Errors
    /// If the kernel can't create a poll; a port that is taken is only logged.
    pub fn open(ha: &Ha, node: &str) -> io::Result<Watch> {
        let poll = Poll::new()?;
        let mut watch = Watch {
            poll,
            events: Events::with_capacity(MAX_EVENTS),
            links: ha.links.clone(),
            listeners: ha.links.iter().map(|_| None).collect(),
            peers: Vec::new(),
            node: node.to_owned(),
        };
        let places: Vec<Option<&HaPeer>> = ha.peers.iter().map(Some).collect();
        watch.set_peers(&places);
        for link in 0..watch.links.len() {
            watch.listen(link);
        }
        Ok(watch)
    }

    /// Follows the peers after a reload, by their places: who is gone, or has other addresses, is
    /// watched no longer.
    pub fn set_peers(&mut self, places: &[Option<&HaPeer>]) {
        let (node, links) = (&self.node, self.links.len());
        self.peers
            .resize_with(places.len().max(self.peers.len()), WatchedPeer::default);
        for (known, peer) in self.peers.iter_mut().zip(places) {
            let (name, addresses) = peer.map_or_else(Default::default, |peer| {
                (peer.name.clone(), peer.addresses.clone())
            });
            if (&known.name, &known.addresses) == (&name, &addresses) {
                continue;
            }
            let lines = known.lines.iter_mut();
            lines.filter_map(Option::take).for_each(Line::hang_up);
            *known = WatchedPeer {
                dialled: *node < name,
                name,
                addresses,
                lines: (0..links).map(|_| None).collect(),
            };
        }
    }

    /// Listens on `link`, once more if it does already: call it when the interface or the address
    /// is there again.
    pub fn listen(&mut self, link: usize) {
        let Some(settings) = self.links.get(link) else {
            return;
        };
        // The old one has the port.
        self.listeners[link] = None;
        let registered = listen(settings).and_then(|listener| {
            let mut listener = TcpListener::from_std(listener);
            let registry = self.poll.registry();
            registry.register(&mut listener, Token(link), Interest::READABLE)?;
            Ok(listener)
        });
        match registered {
            Ok(listener) => self.listeners[link] = Some(listener),
            // The link is missing, which was already reported.
            Err(error) if is_absent(&error) => {}
            Err(error) => log::warn!(
                "peer watch off listen={} error={error} effect=\"a killed peer is noticed a little later\"",
                settings.listen,
                error = InQuotes(&error)
            ),
        }
    }

    /// Connects to `peer`, if that is this unit's part. Call it when the peer is heard again over
    /// `link`; an earlier connection is useless then.
    pub fn dial(&mut self, peer: PeerId, link: LinkId) {
        let Some(known) = self.peers.get(peer.index()).filter(|peer| peer.dialled) else {
            return;
        };
        let address = known.addresses.get(link.index());
        if let (Some(address), Some(settings)) = (address, self.links.get(link.index())) {
            match connect(settings, *address) {
                Ok(stream) => self.keep(peer.index(), link.index(), stream, false),
                Err(error) => log::debug!(
                    "peer not watched peer={} error={error}",
                    peer.0,
                    error = InQuotes(&error)
                ),
            }
        }
    }

    /// Handles events; returns the peers whose connection has ended.
    pub fn ended(&mut self) -> Vec<PeerId> {
        let mut ended = Vec::new();
        let mut events = std::mem::replace(&mut self.events, Events::with_capacity(0));
        if self.poll.poll(&mut events, Some(Duration::ZERO)).is_ok() {
            for event in &events {
                let number = event.token().0;
                if number < self.links.len() {
                    self.accept(number);
                } else if let Some(peer) = self.handle_event(number - self.links.len(), event) {
                    ended.push(peer);
                }
            }
        }
        self.events = events;
        ended
    }

    /// Ends all connections when the process ends regularly.
    pub fn close(&mut self) {
        self.listeners.fill_with(|| None);
        let lines = self.peers.iter_mut().flat_map(|peer| &mut peer.lines);
        lines.filter_map(Option::take).for_each(Line::hang_up);
    }

    fn accept(&mut self, link: usize) {
        for _ in 0..ACCEPT_BUDGET {
            let Some(Ok((stream, from))) = self.listeners[link].as_ref().map(TcpListener::accept)
            else {
                return;
            };
            let is_from = |peer: &WatchedPeer| {
                let address = peer.addresses.get(link);
                !peer.dialled && address.is_some_and(|address| address.ip() == from.ip())
            };
            // Other connections are closed.
            if let Some(peer) = self.peers.iter().position(is_from) {
                self.keep(peer, link, stream, true);
            }
        }
        // Remaining packets are not reported again before another one comes; nor does anybody need
        // them.
    }

    fn keep(&mut self, peer: usize, link: usize, stream: TcpStream, established: bool) {
        let mut stream = TcpStream::from(process::closed_first(OwnedFd::from(stream)));
        let token = Token(self.links.len() * (1 + peer) + link);
        let interest = Interest::READABLE | Interest::WRITABLE;
        let registered = self.poll.registry().register(&mut stream, token, interest);
        let line = registered.is_ok().then_some(Line {
            stream,
            established,
        });
        if let Some(former) = std::mem::replace(&mut self.peers[peer].lines[link], line) {
            former.hang_up();
        }
    }

    fn handle_event(&mut self, number: usize, event: &mio::event::Event) -> Option<PeerId> {
        let (peer, link) = (number / self.links.len(), number % self.links.len());
        let slot = self.peers.get_mut(peer)?.lines.get_mut(link)?;
        let fate = slot.as_mut()?.handle_event(event);
        if fate != LineFate::Lives {
            *slot = None;
        }
        (fate == LineFate::Ended).then_some(PeerId(peer as u8))
    }
}

impl AsRawFd for Watch {
    fn as_raw_fd(&self) -> RawFd {
        self.poll.as_raw_fd()
    }
}

impl Line {
    /// Ends it on purpose: a byte tells the other side that the end means nothing.
    fn hang_up(mut self) {
        let _ = self.stream.write(b".");
    }

    fn handle_event(&mut self, event: &mio::event::Event) -> LineFate {
        let over = if self.established {
            LineFate::Ended
        } else {
            LineFate::Useless
        };
        // The state of the connection counts, for the event may be of the one before in this place.
        if !matches!(self.stream.take_error(), Ok(None)) {
            return over;
        }
        self.established |= event.is_writable() && self.stream.peer_addr().is_ok();
        match self.stream.read(&mut [0; 1]) {
            Ok(0) if self.established => LineFate::Ended,
            Ok(_) => LineFate::Useless,
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::NotConnected => {
                    LineFate::Lives
                }
                _ => over,
            },
        }
    }
}

/// Whether an interface or an address is missing.
fn is_absent(error: &io::Error) -> bool {
    let numbers = [libc::ENODEV, libc::EADDRNOTAVAIL];
    error
        .raw_os_error()
        .is_some_and(|number| numbers.contains(&number))
}

fn listen(link: &HaLink) -> io::Result<std::net::TcpListener> {
    let socket = socket(link)?;
    // A connection of an earlier process may not be quite gone.
    socket.set_reuse_address(true)?;
    socket.bind(&link.listen.into())?;
    socket.listen(16)?;
    Ok(socket.into())
}

fn connect(link: &HaLink, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = socket(link)?;
    socket.bind(&SocketAddr::new(link.listen.ip(), 0).into())?;
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(TcpStream::from_std(StdStream::from(socket))),
    }
}

fn socket(link: &HaLink) -> io::Result<Socket> {
    let domain = Domain::for_address(link.listen);
    let socket = Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    match socket.bind_device(Some(link.interface.as_bytes())) {
        Err(error) if error.kind() != ErrorKind::PermissionDenied => return Err(error),
        _ => {}
    }
    if link.listen.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use std::time::Instant;
    use tandemgw_core::config::{Config, parse};

    fn config(node: &str, own: u8, peer: &str, other: u8) -> Config {
        let text = format!(
            r#"
            node = {{ name = "{node}", key = "k" }}
            port = [{{ name = "lan", interface = "e0", virtual-addresses = ["10.0.0.1/8"] }}]
            [ha]
            group-id = 7
            link = [{{ interface = "lo", listen = "10.0.7.{own}:7030" }}]
            peer = [{{ name = "{peer}", addresses = ["10.0.7.{other}:7030"], public-key = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=" }}]
            "#
        );
        match parse(Path::new("test.toml"), &text) {
            Ok((config, _)) => config,
            Err(found) => panic!("{found:?}"),
        }
    }

    fn watch(node: &str, own: u8, peer: &str, other: u8) -> Watch {
        let mut ha = config(node, own, peer, other).ha.unwrap();
        // A config may not have loopback addresses.
        ha.links[0].listen = SocketAddr::from(([127, 0, 7, own], 7030));
        ha.peers[0].addresses = vec![SocketAddr::from(([127, 0, 7, other], 7030))];
        Watch::open(&ha, node).unwrap()
    }

    fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
        let start = Instant::now();
        while !condition() {
            assert!(start.elapsed() < Duration::from_secs(20), "never {what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    const PEER: PeerId = PeerId(0);
    const LINK: LinkId = LinkId(0);

    fn is_up(watch: &Watch) -> bool {
        let line = watch.peers[0].lines[0].as_ref();
        line.is_some_and(|line| line.established)
    }

    fn pair(a: u8, b: u8) -> (Watch, Watch) {
        let mut first = watch("a", a, "b", b);
        let mut second = watch("b", b, "a", a);
        // Only one of them dials.
        second.dial(PEER, LINK);
        assert!(second.peers[0].lines[0].is_none());
        first.dial(PEER, LINK);
        eventually("connected", || {
            assert_eq!(first.ended(), []);
            assert_eq!(second.ended(), []);
            is_up(&first) && is_up(&second)
        });
        (first, second)
    }

    #[test]
    fn either_side_notices_the_end_of_the_other_once() {
        let (mut first, second) = pair(1, 2);
        drop(second);
        eventually("noticed", || first.ended() == [PEER]);
        assert_eq!(first.ended(), []);

        let (first, mut second) = pair(3, 4);
        drop(first);
        eventually("noticed", || second.ended() == [PEER]);
        assert_eq!(second.ended(), []);
    }

    #[test]
    fn a_fresh_connection_in_place_of_another_is_no_end() {
        let (mut first, mut second) = pair(5, 6);
        first.dial(PEER, LINK);
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(100) {
            assert_eq!(second.ended(), []);
            assert_eq!(first.ended(), []);
        }
        assert!(is_up(&first) && is_up(&second));
    }

    #[test]
    fn an_end_in_good_order_is_none() {
        let (mut first, mut second) = pair(9, 10);
        second.close();
        eventually("closed", || {
            assert_eq!(first.ended(), []);
            first.peers[0].lines[0].is_none()
        });
    }

    #[test]
    fn nobody_there_and_strangers_are_no_end() {
        let mut first = watch("a", 7, "b", 8);
        first.dial(PEER, LINK);
        eventually("refused", || {
            assert_eq!(first.ended(), []);
            first.peers[0].lines[0].is_none()
        });
        // From 127.0.0.1, which is not a peer.
        drop(StdStream::connect("127.0.7.7:7030").unwrap());
        for _ in 0..100 {
            assert_eq!(first.ended(), []);
        }
    }
}
