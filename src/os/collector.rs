//! Messages to a collector over UDP, for processes beside the gateway: a bounded queue, and a
//! thread that sends. What does not fit into the queue is lost, and counted.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use super::clock;
use tandemgw_core::time::Time;

/// Items that may wait.
const MOST_WAITING: usize = 65_536;

/// How long an item may wait for others to share a message with.
const SHARE: Duration = Duration::from_millis(500);

/// Between two messages about how to read the others (RFC 7011, section 8.4: a collector over UDP
/// forgets).
const REPEAT: Duration = Duration::from_secs(30);

/// A message, and how many items it has.
pub type Message = (Vec<u8>, u32);

/// Makes messages of items.
pub trait Encode: Send + 'static {
    /// What is sent.
    type Item: Send + 'static;

    /// Adds an item; returns a message that is full.
    fn add(&mut self, item: Self::Item) -> Option<Message>;

    /// The message that has room left.
    fn take(&mut self) -> Option<Message>;

    /// How to read the others; with the items that were sent and lost until now.
    fn repeat(&mut self, sent: u64, lost: u64) -> Message;
}

/// Where items go to.
pub struct Queue<T> {
    sender: SyncSender<T>,
    lost: Arc<AtomicU64>,
}

impl<T> Queue<T> {
    /// Puts an item into the queue, or counts it as lost.
    pub fn offer(&self, item: T) {
        if self.sender.try_send(item).is_err() {
            self.note_lost(1);
        }
    }

    /// Counts items that were lost before.
    pub fn note_lost(&self, count: u64) {
        self.lost.fetch_add(count, Ordering::Relaxed);
    }

    /// Items that were lost.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

/// Starts to send to `collector`, `HOST:PORT`, in a thread of its own.
///
/// # Errors
/// If there is no such host, or no socket.
pub fn start<E: Encode>(collector: &str, encode: E) -> io::Result<Queue<E::Item>> {
    let socket = connect(collector)?;
    let (sender, items) = sync_channel(MOST_WAITING);
    let lost = Arc::new(AtomicU64::new(0));
    let mut sending = Sending {
        socket,
        encode,
        sent: 0,
        lost: Arc::clone(&lost),
    };
    thread::Builder::new().spawn(move || sending.run(&items))?;
    Ok(Queue { sender, lost })
}

fn connect(collector: &str) -> io::Result<UdpSocket> {
    let mut addresses = collector.to_socket_addrs()?;
    let address = addresses.next();
    let address = address.ok_or_else(|| io::Error::other("this host has no address"))?;
    let any: SocketAddr = match address {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect(address)?;
    Ok(socket)
}

struct Sending<E> {
    socket: UdpSocket,
    encode: E,
    sent: u64,
    lost: Arc<AtomicU64>,
}

impl<E: Encode> Sending<E> {
    /// Until the queue is gone.
    fn run(&mut self, items: &Receiver<E::Item>) {
        let mut repeat_due = Time::ZERO;
        let mut share_until = None;
        loop {
            let now = clock::now();
            if now >= repeat_due {
                let lost = self.lost.load(Ordering::Relaxed);
                let message = self.encode.repeat(self.sent, lost);
                // Not an item of anybody's.
                let _ = self.socket.send(&message.0);
                repeat_due = now + REPEAT;
            }
            let until: Time = share_until.unwrap_or(repeat_due).min(repeat_due);
            match items.recv_timeout(until.since(now)) {
                Ok(item) => {
                    if let Some(message) = self.encode.add(item) {
                        self.send(message);
                        share_until = None;
                    }
                    share_until.get_or_insert(clock::now() + SHARE);
                }
                Err(RecvTimeoutError::Disconnected) => return self.send_rest(),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if share_until.is_some_and(|until| clock::now() >= until) {
                self.send_rest();
                share_until = None;
            }
        }
    }

    fn send_rest(&mut self) {
        if let Some(message) = self.encode.take() {
            self.send(message);
        }
    }

    fn send(&mut self, (message, items): Message) {
        match self.socket.send(&message) {
            Ok(_) => self.sent += u64::from(items),
            // Nobody listens there, or the network is gone.
            Err(_) => {
                self.lost.fetch_add(items.into(), Ordering::Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A byte an item, four a message.
    #[derive(Default)]
    struct Bytes(Vec<u8>);

    impl Encode for Bytes {
        type Item = u8;

        fn add(&mut self, item: u8) -> Option<Message> {
            self.0.push(item);
            (self.0.len() == 4).then(|| self.take()).flatten()
        }

        fn take(&mut self) -> Option<Message> {
            let bytes = std::mem::take(&mut self.0);
            (!bytes.is_empty()).then(|| (bytes.clone(), bytes.len() as u32))
        }

        fn repeat(&mut self, _: u64, _: u64) -> Message {
            (b"templates".to_vec(), 0)
        }
    }

    #[test]
    fn items_arrive_together_and_the_last_ones_soon() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let address = socket.local_addr().unwrap().to_string();
        let queue = start(&address, Bytes::default()).unwrap();
        for item in 0..6 {
            queue.offer(item);
        }
        let mut piece = [0; 64];
        let mut next = || {
            let length = socket.recv(&mut piece).unwrap();
            piece[..length].to_vec()
        };
        assert_eq!(next(), b"templates");
        assert_eq!(next(), [0, 1, 2, 3]);
        assert_eq!(next(), [4, 5]);
        assert_eq!(queue.lost(), 0);
    }

    #[test]
    fn what_nobody_takes_is_counted() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap().to_string();
        drop(socket);
        let queue = start(&address, Bytes::default()).unwrap();
        let mut offered = 0;
        while queue.lost() == 0 {
            queue.offer(1);
            offered += 1;
            thread::sleep(Duration::from_millis(1));
            assert!(offered < 10_000, "a closed port refuses");
        }
        queue.note_lost(100);
        assert!(queue.lost() > 100);
    }
}
