//! Multicast: frames of the ports that a policy names, in and out.

use std::io;
use std::time::Duration;

use mio::{Interest, Registry, Token};

use tandemgw_core::config::Config;
use tandemgw_core::flow::PortId;
use tandemgw_core::in_quotes::InQuotes;
use tandemgw_core::time::Time;

use super::super::clock;
use super::super::multicast_socket::{FrameBuffer, MulticastSocket};
use super::super::worker;
use super::ready::Bits;
use super::{PORTS, Shell};

/// Frames read from one port in a turn, and the time after which no more are read: less than
/// packets of sessions get.
const BUDGET: usize = 64;
const TIME: Duration = Duration::from_micros(150);
/// Ports that a config can have, each with two tokens of its own.
const MOST_PORTS: usize = 512;
const STREAMS: usize = PORTS + 2 * MOST_PORTS;

/// The sockets for frames to many.
pub(super) struct Streams {
    /// By port: none if no policy names it.
    sockets: Vec<Option<MulticastSocket>>,
    /// By port: may hold more than was read.
    ready: Bits,
    frame: FrameBuffer,
}

impl Streams {
    /// Opens them.
    pub(super) fn open(config: &Config, registry: &Registry) -> io::Result<Streams> {
        let ports = (0..config.ports.len()).map(PortId::from_index);
        let sockets = ports.map(|port| open(config, port, registry));
        let sockets = sockets.collect::<io::Result<Vec<_>>>()?;
        Ok(Streams {
            ready: Bits::new(sockets.len()),
            sockets,
            frame: FrameBuffer::default(),
        })
    }

    /// Follows policies that have changed: opens sockets, and has those that stay receive what may
    /// be wanted now. Returns those to be closed, which takes long, and what went wrong.
    pub(super) fn follow(
        &mut self,
        config: &Config,
        registry: &Registry,
    ) -> (Vec<MulticastSocket>, Vec<String>) {
        let (mut closed, mut warnings) = (Vec::new(), Vec::new());
        for (index, socket) in self.sockets.iter_mut().enumerate() {
            let port = PortId::from_index(index);
            let followed = match socket {
                Some(socket) if config.has_multicast(port) => socket.follow(config, port),
                Some(_) => {
                    closed.extend(socket.take());
                    Ok(())
                }
                None => open(config, port, registry).map(|opened| *socket = opened),
            };
            warnings.extend(followed.err().map(|error| error.to_string()));
        }
        (closed, warnings)
    }

    /// Whether there may be more to read.
    pub(super) fn is_busy(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Notes that the source with this token is readable; returns false if it is not one of these.
    pub(super) fn mark(&mut self, token: Token) -> bool {
        let port = token.0.checked_sub(STREAMS);
        port.inspect(|port| self.ready.insert(*port)).is_some()
    }
}

/// Opens the socket of a port, if a policy names it.
fn open(config: &Config, port: PortId, registry: &Registry) -> io::Result<Option<MulticastSocket>> {
    let opened = MulticastSocket::open(config, port).and_then(|mut socket| {
        if let Some(socket) = &mut socket {
            let token = Token(STREAMS + port.index());
            registry.register(socket, token, Interest::READABLE)?;
        }
        Ok(socket)
    });
    opened.map_err(|error| {
        let interface = &config.ports[port.index()].interface;
        let what = format!("listening for multicast on {interface}: {error}");
        io::Error::new(error.kind(), what)
    })
}

impl Shell {
    /// Multicast policies have changed; returns what went wrong.
    pub(super) fn follow_streams(&mut self) -> Vec<String> {
        let config = self.gateway.shared_config();
        let (closed, warnings) = self.streams.follow(&config, self.poll.registry());
        worker::discard(&self.waker, closed);
        warnings
    }

    /// Forwards frames of each ready port, up to its budget.
    pub(super) fn read_streams(&mut self, now: Time) {
        let mut next = self.streams.ready.next(0);
        while let Some(index) = next {
            self.read_stream(now, index);
            next = self.streams.ready.next(index + 1);
        }
    }

    fn read_stream(&mut self, now: Time, index: usize) {
        let Streams {
            sockets,
            ready,
            frame,
        } = &mut self.streams;
        let Some(socket) = sockets[index].as_ref() else {
            return ready.remove(index);
        };
        let (gateway, port) = (&mut self.gateway, PortId::from_index(index));
        let began = clock::now();
        for number in 0..BUDGET {
            if number % 8 == 7 && clock::now().since(began) >= TIME {
                return;
            }
            // An error is that of the interface (down, removed); the monitor tells about it.
            if !socket.recv(frame).unwrap_or(false) {
                return ready.remove(index);
            }
            let offload = frame.offload();
            let copies = gateway.handle_multicast(now, port, frame.frame_mut(), offload);
            for copy in 0..copies {
                let exit = gateway.multicast_copy(copy, frame.frame_mut(), offload);
                let exit = exit.and_then(|exit| sockets[exit.index()].as_ref());
                if exit.is_some_and(|exit| exit.send(frame).is_err()) {
                    gateway.handle_write_failure();
                }
            }
        }
    }

    /// The interface of a port was recreated.
    pub(super) fn reopen_stream(&mut self, index: usize) {
        let (port, registry) = (PortId::from_index(index), self.poll.registry());
        let reopened = match &mut self.streams.sockets[index] {
            Some(socket) => socket.reopen().and_then(|former| {
                let token = Token(STREAMS + index);
                registry.register(socket, token, Interest::READABLE)?;
                Ok(Some(former))
            }),
            // It may be missing since a reload, at which there was no such interface.
            missing => open(self.gateway.config(), port, registry).map(|opened| {
                *missing = opened;
                None
            }),
        };
        match reopened {
            Ok(former) => worker::discard(&self.waker, former),
            Err(error) => log::error!(
                "multicast socket not opened port={} error={}",
                self.gateway.port_name(port),
                InQuotes(&error)
            ),
        }
        self.streams.ready.insert(index);
    }
}
