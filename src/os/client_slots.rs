//! The clients of a listening socket: which ones may have work, whose turn it is, and which one
//! makes room for the next. The control socket and the HTTP server share this.

use std::io::{self, ErrorKind};

use mio::event::Source;
use mio::{Interest, Registry, Token};
use tandemgw_core::time::Time;

use super::next_bit;

/// Clients at a time; others wait in the socket's backlog.
pub const MAX_CLIENTS: usize = 16;

/// Clients to accept at a time: some 50 µs.
const ACCEPTS: usize = 8;

/// The listening socket, as bit 0 of the sets.
const LISTENER: u32 = 1;

/// Which socket has work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// The listening socket.
    Listener,
    /// The client in this slot.
    Client(usize),
}

/// The result of accepting clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// There may be more of them.
    Some,
    /// There are no more.
    All,
    /// There may be more, but no free slot.
    Full,
}

/// How readily a client makes room: the lowest first. None for one that does not.
pub type Rank = Option<(u8, Time)>;

/// Slots for [`MAX_CLIENTS`] clients. Uses the tokens `first..=first + MAX_CLIENTS`.
pub struct ClientSlots<C> {
    first: usize,
    clients: [Option<C>; MAX_CLIENTS],
    /// Which ones may have work: the listener in bit 0, then the clients.
    ready: u32,
    /// The bit whose turn it was last.
    last: u32,
}

impl<C> ClientSlots<C> {
    /// No clients yet.
    pub fn new(first: Token) -> ClientSlots<C> {
        ClientSlots {
            first: first.0,
            clients: [const { None }; MAX_CLIENTS],
            ready: 0,
            last: 0,
        }
    }

    /// Whether an event with `token` is for one of these.
    pub fn owns(&self, token: Token) -> bool {
        (self.first..=self.first + MAX_CLIENTS).contains(&token.0)
    }

    /// Records an event.
    pub fn mark(&mut self, token: Token) {
        self.ready |= 1 << (token.0 - self.first);
    }

    /// Marks the clients that `wants` accepts as having work, although there was no event.
    pub fn mark_where(&mut self, wants: impl Fn(&C) -> bool) {
        for (slot, client) in self.clients.iter().enumerate() {
            let wants = client.as_ref().is_some_and(&wants);
            self.ready |= u32::from(wants) << (slot + 1);
        }
    }

    /// Marks the listener as possibly ready, although there was no event.
    pub fn mark_listener(&mut self) {
        self.ready |= LISTENER;
    }

    /// Whether any may have work.
    pub fn is_busy(&self) -> bool {
        self.ready != 0
    }

    /// All that may have work now, for [`ClientSlots::take_turn`].
    pub fn all_ready(&self) -> u32 {
        self.ready
    }

    /// Takes the next one from `left`, round robin, so that none waits forever.
    pub fn take_turn(&mut self, left: &mut u32) -> Option<Turn> {
        let bit = next_bit(*left, self.last)?;
        self.last = bit;
        *left &= !(1 << bit);
        Some(match bit.checked_sub(1) {
            None => Turn::Listener,
            Some(slot) => Turn::Client(slot as usize),
        })
    }

    /// That one has no work until the next event.
    pub fn rest(&mut self, turn: Turn) {
        self.ready &= !match turn {
            Turn::Listener => LISTENER,
            Turn::Client(slot) => 1 << (slot + 1),
        };
    }

    /// The client in `slot`.
    pub fn get_mut(&mut self, slot: usize) -> Option<&mut C> {
        self.clients[slot].as_mut()
    }

    /// The clients with their slots.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &C)> {
        let slots = self.clients.iter().enumerate();
        slots.filter_map(|(slot, client)| Some((slot, client.as_ref()?)))
    }

    /// The clients.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut C> {
        self.clients.iter_mut().flatten()
    }

    /// Frees a slot. The backlog may hold a client whose event has passed.
    pub fn remove(&mut self, slot: usize) -> Option<C> {
        self.mark_listener();
        self.clients[slot].take()
    }

    /// The slot for the next client: a free one, or that of the client that makes room most
    /// readily.
    pub fn place(&self, rank: impl Fn(&C) -> Rank) -> Option<usize> {
        let rank_of = |slot: &usize| match &self.clients[*slot] {
            None => Some((0, Time::ZERO)),
            Some(client) => rank(client),
        };
        let ranked = (0..MAX_CLIENTS).filter_map(|slot| Some((rank_of(&slot)?, slot)));
        ranked.min().map(|(_, slot)| slot)
    }

    /// Accepts clients while there are slots, but not too many at a time. `evict` gets each client
    /// that has to make room.
    pub fn accept<S: Source>(
        &mut self,
        registry: &Registry,
        rank: impl Fn(&C) -> Rank,
        mut accept: impl FnMut() -> io::Result<S>,
        make: impl Fn(S) -> C,
        mut evict: impl FnMut(C),
    ) -> Accepted {
        for _ in 0..ACCEPTS {
            let Some(slot) = self.place(&rank) else {
                return Accepted::Full;
            };
            let mut stream = match accept() {
                Ok(stream) => stream,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => return Accepted::All,
            };
            if let Some(client) = self.clients[slot].take() {
                evict(client);
            }
            let token = Token(self.first + 1 + slot);
            let interest = Interest::READABLE | Interest::WRITABLE;
            if registry.register(&mut stream, token, interest).is_ok() {
                self.clients[slot] = Some(make(stream));
                // Served before others could take its place.
                self.mark(token);
            }
        }
        Accepted::Some
    }
}

#[cfg(test)]
mod tests {
    use mio::Poll;
    use mio::net::{UnixListener, UnixStream};

    use super::*;

    struct Client {
        _stream: UnixStream,
        rank: Rank,
    }

    /// Accepts all that have come, with this rank each; gives the ranks of those that had to go.
    fn accept(
        slots: &mut ClientSlots<Client>,
        listener: &UnixListener,
        rank: Rank,
    ) -> (Accepted, Vec<Rank>) {
        let poll = Poll::new().unwrap();
        let mut evicted = Vec::new();
        let accepted = slots.accept(
            poll.registry(),
            |client| client.rank,
            || listener.accept().map(|(stream, _)| stream),
            |stream| Client {
                _stream: stream,
                rank,
            },
            |client| evicted.push(client.rank),
        );
        (accepted, evicted)
    }

    #[test]
    fn turns_go_in_a_circle_and_who_rests_has_none() {
        let mut slots = ClientSlots::<()>::new(Token(100));
        assert!(slots.owns(Token(100)) && slots.owns(Token(116)) && !slots.owns(Token(117)));
        for token in [100, 103, 116] {
            slots.mark(Token(token));
        }
        let mut turns = Vec::new();
        let mut left = slots.all_ready();
        while let Some(turn) = slots.take_turn(&mut left) {
            turns.push(turn);
        }
        turns.sort_by_key(|turn| format!("{turn:?}"));
        assert_eq!(turns, [Turn::Client(15), Turn::Client(2), Turn::Listener]);
        slots.rest(Turn::Client(2));
        slots.rest(Turn::Listener);
        let mut left = slots.all_ready();
        assert_eq!(slots.take_turn(&mut left), Some(Turn::Client(15)));
        assert_eq!(slots.take_turn(&mut left), None);
        slots.rest(Turn::Client(15));
        assert!(!slots.is_busy());
    }

    #[test]
    fn the_one_that_makes_room_most_readily_goes() {
        let folder = std::env::temp_dir().join(format!("tandemgw-slots-{}", std::process::id()));
        let _ = std::fs::remove_file(&folder);
        let listener = UnixListener::bind(&folder).unwrap();
        let connect = || std::os::unix::net::UnixStream::connect(&folder).unwrap();
        let mut slots = ClientSlots::new(Token(0));
        let busy = None;
        let mut streams: Vec<_> = (0..MAX_CLIENTS - 1).map(|_| connect()).collect();
        assert_eq!(accept(&mut slots, &listener, busy).0, Accepted::Some);
        assert_eq!(accept(&mut slots, &listener, busy).0, Accepted::All);
        let idle = Some((1, Time::from_nanos(7)));
        streams.push(connect());
        assert_eq!(accept(&mut slots, &listener, idle), (Accepted::All, vec![]));
        streams.push(connect());
        assert_eq!(
            accept(&mut slots, &listener, busy),
            (Accepted::Full, vec![idle])
        );
        assert_eq!(slots.iter().count(), MAX_CLIENTS);
        streams.push(connect());
        assert_eq!(
            accept(&mut slots, &listener, busy),
            (Accepted::Full, vec![])
        );
        assert!(slots.remove(3).is_some());
        assert_eq!(
            accept(&mut slots, &listener, busy),
            (Accepted::Full, vec![])
        );
        std::fs::remove_file(&folder).unwrap();
    }
}
