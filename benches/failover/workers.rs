//! The workers that run inside the namespaces: each is another process of this same binary.

use std::collections::BTreeMap;
use std::io::{self, BufRead, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use clap::Parser;
use mio::net::TcpListener;
use mio::{Events, Interest, Poll, Token};
use serde_json::json;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use tandemgw::os::packet_socket::PacketSocket;
use tandemgw_core::flow::Addr;
use tandemgw_core::packet::neighbor::{self, Neighbor};
use testkit::system::traffic;
use testkit::system::worker::Result;

/// A worker; prints a line of JSON at its end.
#[derive(Parser)]
#[command(no_binary_name = true)]
pub enum Worker {
    /// Answers UDP packets, at real-time priority.
    EchoServer { at: SocketAddr },
    /// Sends UDP packets at a steady pace, and notes when answers come.
    Echo {
        to: SocketAddr,
        seconds: f64,
        /// Packets a second.
        #[arg(long, default_value_t = 1000)]
        rate: u32,
    },
    /// Sends back what comes, on any number of TCP connections.
    TcpEchoServer { at: SocketAddr },
    /// Opens TCP connections; once told to on stdin, tries each of them.
    Sessions(Sessions),
    /// Sends one TCP stream at a steady pace, and counts retransmissions.
    Stream {
        to: SocketAddr,
        seconds: f64,
        /// Mbit/s; flat out if 0.
        #[arg(long, default_value_t = 0)]
        mbit: u64,
    },
    /// Keeps a processor busy.
    Burn,
    /// Makes so many hosts heard, which ask for the first virtual address.
    Hosts { interface: String, count: u16 },
    /// Notes when each address is first announced by ARP.
    Announcements { interface: String, seconds: f64 },
    /// Sends numbered datagrams to a group, 1000 a second.
    ToMany { group: Ipv4Addr, seconds: f64 },
    /// Joins a group; once told to end on stdin, prints what came and when.
    Member { group: Ipv4Addr, own: Ipv4Addr },
    #[command(flatten)]
    Traffic(traffic::Worker),
}

/// See [`Worker::Sessions`].
#[derive(clap::Args)]
pub struct Sessions {
    to: SocketAddr,
    /// Source addresses, which are used in turn, with the same source ports.
    #[arg(long, value_delimiter = ',')]
    sources: Vec<IpAddr>,
    #[arg(long)]
    count: usize,
    /// Connections a second.
    #[arg(long)]
    rate: f64,
}

/// First source port of [`Worker::Sessions`].
const FIRST_PORT: usize = 20_000;
/// How long a session may take to be opened, or to answer.
const PATIENCE: Duration = Duration::from_secs(10);

impl Worker {
    /// Runs it to its end.
    pub fn run(self) -> Result<()> {
        match self {
            Worker::EchoServer { at } => echo_server(at),
            Worker::Echo { to, seconds, rate } => echo(to, seconds, rate),
            Worker::TcpEchoServer { at } => tcp_echo_server(at),
            Worker::Sessions(options) => sessions(&options),
            Worker::Stream { to, seconds, mbit } => stream(to, seconds, mbit),
            Worker::Burn => loop {
                std::hint::spin_loop();
            },
            Worker::Hosts { interface, count } => hosts(&interface, count),
            Worker::Announcements { interface, seconds } => announcements(&interface, seconds),
            Worker::ToMany { group, seconds } => to_many(group, seconds),
            Worker::Member { group, own } => member(group, own),
            Worker::Traffic(worker) => worker.run(),
        }
    }
}

/// Seconds on the monotonic clock, which all processes share.
pub fn monotonic() -> f64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the kernel writes to `time` only.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// The measuring process must not wait for the measured one.
fn become_real_time() {
    let parameters = libc::sched_param { sched_priority: 10 };
    // SAFETY: the kernel reads `parameters` only. A refusal shows in the figures.
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &parameters) };
    if result != 0 {
        log::warn!("no real-time priority: {}", io::Error::last_os_error());
    }
}

fn hosts(interface: &str, count: u16) -> Result<()> {
    let socket = PacketSocket::open(interface)?;
    for number in 0..count {
        let [high, low] = number.to_be_bytes();
        let own = Addr::v6([0xfd, 0x77, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, high, low]);
        let gateway = Addr::v6([0xfd, 0x77, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        socket.send(&neighbor::solicit(gateway, own, [2, 0, 0, 9, high, low]))?;
        if number % 16 == 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    println!("{{}}");
    Ok(())
}

fn announcements(interface: &str, seconds: f64) -> Result<()> {
    let socket = PacketSocket::open(interface)?;
    become_real_time();
    println!("ready");
    let mut seen: BTreeMap<String, f64> = BTreeMap::new();
    let end = monotonic() + seconds;
    let mut buffer = [0; 2048];
    while monotonic() < end {
        match socket.recv(&mut buffer) {
            Ok(Some(length)) => {
                if let Ok(Neighbor::Advertise(claim)) = neighbor::parse_frame(&buffer[..length]) {
                    seen.entry(claim.addr.to_string()).or_insert_with(monotonic);
                }
            }
            _ => std::thread::sleep(Duration::from_micros(50)),
        }
    }
    println!("{}", json!(seen));
    Ok(())
}

fn raise_file_limit() {
    let limit = libc::rlimit {
        rlim_cur: 20_000,
        rlim_max: 20_000,
    };
    // SAFETY: the kernel reads `limit` only. A refusal shows when the files run out.
    unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) };
}

fn echo_server(at: SocketAddr) -> Result<()> {
    let socket = UdpSocket::bind(at)?;
    become_real_time();
    println!("ready");
    let mut buffer = [0; 2048];
    loop {
        // Errors are those of earlier answers.
        if let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..length], from);
        }
    }
}

fn echo(to: SocketAddr, seconds: f64, rate: u32) -> Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(to)?;
    await_answer(&socket)?;
    socket.set_nonblocking(true)?;
    become_real_time();
    println!("ready");
    let interval = 1.0 / f64::from(rate);
    let count = (seconds * f64::from(rate)) as usize;
    let mut sent = Vec::with_capacity(count);
    let mut received = Vec::with_capacity(count);
    let start = monotonic();
    let end = start + seconds + 0.3;
    loop {
        let now = monotonic();
        let due = start + sent.len() as f64 * interval;
        if sent.len() < count && now >= due {
            let number = sent.len() as u32;
            sent.push(now);
            let _ = socket.send(&number.to_be_bytes());
            continue;
        }
        let mut buffer = [0; 64];
        while let Ok(length) = socket.recv(&mut buffer) {
            if let Ok(number) = <[u8; 4]>::try_from(&buffer[..length]) {
                received.push((u32::from_be_bytes(number), monotonic()));
            }
        }
        let until = if sent.len() < count { due } else { end };
        if until <= monotonic() {
            if sent.len() == count {
                break;
            }
            continue;
        }
        wait_readable(&socket, until - monotonic());
    }
    println!("{}", json!({ "sent": sent, "received": received }));
    Ok(())
}

/// The port of streams to many.
const STREAM_PORT: u16 = 5004;

fn to_many(group: Ipv4Addr, seconds: f64) -> Result<()> {
    const INTERVAL: f64 = 0.001;
    let own: Ipv4Addr = crate::pair::SERVER.parse()?;
    let socket = UdpSocket::bind((own, 0))?;
    SockRef::from(&socket).set_multicast_if_v4(&own)?;
    socket.set_multicast_ttl_v4(8)?;
    become_real_time();
    println!("ready");
    let start = monotonic();
    for number in 0..(seconds / INTERVAL) as u32 {
        let due = start + f64::from(number) * INTERVAL;
        let wait = (due - monotonic()).max(0.0);
        std::thread::sleep(Duration::from_secs_f64(wait));
        let _ = socket.send_to(&number.to_be_bytes(), (group, STREAM_PORT));
    }
    println!("{}", json!({ "end": monotonic() }));
    Ok(())
}

fn member(group: Ipv4Addr, own: Ipv4Addr) -> Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, STREAM_PORT))?;
    socket.join_multicast_v4(&group, &own)?;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    become_real_time();
    println!("ready");
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let _ = io::stdin().lock().read_line(&mut String::new());
        tell.send(())
    });
    let mut received = Vec::new();
    let mut buffer = [0; 64];
    while told.try_recv().is_err() {
        let Ok(length) = socket.recv(&mut buffer) else {
            continue;
        };
        if let Ok(number) = <[u8; 4]>::try_from(&buffer[..length]) {
            received.push((u32::from_be_bytes(number), monotonic()));
        }
    }
    println!("{}", json!({ "sent": [], "received": received }));
    Ok(())
}

/// Until the way there works: the first packets wait for ARP.
fn await_answer(socket: &UdpSocket) -> Result<()> {
    socket.set_read_timeout(Some(Duration::from_millis(50)))?;
    let start = Instant::now();
    let mut buffer = [0; 64];
    while start.elapsed() < PATIENCE {
        let _ = socket.send(b"hello");
        if socket.recv(&mut buffer).is_ok() {
            return Ok(());
        }
    }
    Err("the echo server does not answer".into())
}

fn wait_readable(socket: &UdpSocket, seconds: f64) {
    let mut fd = libc::pollfd {
        fd: socket.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let nanos = (seconds.max(0.0) * 1e9) as i64;
    let timeout = libc::timespec {
        tv_sec: nanos / 1_000_000_000,
        tv_nsec: nanos % 1_000_000_000,
    };
    // SAFETY: one descriptor, and both structures outlive the call; no signal mask.
    unsafe { libc::ppoll(&mut fd, 1, &timeout, std::ptr::null()) };
}

fn tcp_echo_server(at: SocketAddr) -> Result<()> {
    raise_file_limit();
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&at.into())?;
    socket.listen(4096)?;
    let mut listener = TcpListener::from_std(socket.into());
    let mut poll = Poll::new()?;
    poll.registry()
        .register(&mut listener, Token(usize::MAX), Interest::READABLE)?;
    println!("ready");
    let mut streams: Vec<mio::net::TcpStream> = Vec::new();
    let mut events = Events::with_capacity(1024);
    let mut buffer = [0; 4096];
    loop {
        poll.poll(&mut events, None)?;
        for event in &events {
            if event.token() == Token(usize::MAX) {
                while let Ok((mut stream, _)) = listener.accept() {
                    let token = Token(streams.len());
                    poll.registry()
                        .register(&mut stream, token, Interest::READABLE)?;
                    streams.push(stream);
                }
                continue;
            }
            let stream = &mut streams[event.token().0];
            while let Ok(length @ 1..) = stream.read(&mut buffer) {
                let _ = stream.write(&buffer[..length]);
            }
        }
    }
}

/// How far a session is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Opening,
    Open,
    Answered,
    Failed,
}

struct Clients {
    poll: Poll,
    events: Events,
    sessions: Vec<(Socket, State)>,
}

fn sessions(options: &Sessions) -> Result<()> {
    raise_file_limit();
    let mut clients = Clients {
        poll: Poll::new()?,
        events: Events::with_capacity(1024),
        sessions: Vec::with_capacity(options.count),
    };
    println!("ready");
    let start = Instant::now();
    while clients.sessions.len() < options.count {
        let due = clients.sessions.len() as f64 / options.rate;
        let wait = Duration::from_secs_f64(due).saturating_sub(start.elapsed());
        if wait.is_zero() {
            clients.open(options)?;
        } else {
            clients.turn(wait)?;
        }
    }
    clients.settle(State::Opening)?;
    let opened = clients.count(State::Open);
    println!("{}", json!({ "opened": opened }));
    io::stdin().lock().read_line(&mut String::new())?;
    for (socket, state) in &mut clients.sessions {
        if *state == State::Open && socket.send(b"x").is_err() {
            *state = State::Failed;
        }
    }
    clients.settle(State::Open)?;
    let (answered, silent) = (clients.count(State::Answered), clients.count(State::Open));
    println!(
        "{}",
        json!({ "opened": opened, "lost": opened - answered, "silent": silent })
    );
    Ok(())
}

impl Clients {
    fn open(&mut self, options: &Sessions) -> Result<()> {
        let number = self.sessions.len();
        let source = options.sources[number % options.sources.len()];
        let port = FIRST_PORT + number / options.sources.len();
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        socket.bind(&SocketAddr::new(source, port.try_into()?).into())?;
        // It is under way.
        let _ = socket.connect(&options.to.into());
        let fd = socket.as_raw_fd();
        self.poll.registry().register(
            &mut mio::unix::SourceFd(&fd),
            Token(number),
            Interest::READABLE | Interest::WRITABLE,
        )?;
        self.sessions.push((socket, State::Opening));
        Ok(())
    }

    fn turn(&mut self, wait: Duration) -> Result<()> {
        self.poll.poll(&mut self.events, Some(wait))?;
        for event in &self.events {
            let (socket, state) = &mut self.sessions[event.token().0];
            let failed = event.is_error() || event.is_read_closed();
            match *state {
                State::Answered | State::Failed => {}
                _ if failed => *state = State::Failed,
                State::Opening if event.is_writable() => *state = State::Open,
                State::Open if event.is_readable() => {
                    let mut byte = [0; 16];
                    if matches!((&*socket).read(&mut byte), Ok(1..)) {
                        *state = State::Answered;
                    }
                }
                State::Opening | State::Open => {}
            }
        }
        Ok(())
    }

    /// Until no session is in `state` any more, or patience ends.
    fn settle(&mut self, state: State) -> Result<()> {
        let start = Instant::now();
        while self.count(state) > 0 && start.elapsed() < PATIENCE {
            self.turn(Duration::from_millis(50))?;
        }
        Ok(())
    }

    fn count(&self, state: State) -> usize {
        self.sessions.iter().filter(|(_, s)| *s == state).count()
    }
}

fn stream(to: SocketAddr, seconds: f64, mbit: u64) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    if mbit > 0 {
        let rate = mbit * 125_000;
        // SAFETY: the kernel reads the 8 bytes of `rate`.
        let result = unsafe {
            libc::setsockopt(
                stream.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_MAX_PACING_RATE,
                (&raw const rate).cast(),
                8,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error().into());
        }
    }
    println!("ready");
    let bytes = vec![7u8; 1 << 17];
    let start = Instant::now();
    let mut sent = 0;
    while start.elapsed().as_secs_f64() < seconds {
        stream.write_all(&bytes)?;
        sent += bytes.len();
    }
    let gbit = sent as f64 * 8e-9 / start.elapsed().as_secs_f64();
    let again = retransmits(&stream)?;
    println!("{}", json!({ "gbit_s": gbit, "retransmits": again }));
    Ok(())
}

/// Segments that were sent more than once (`tcpi_total_retrans`).
fn retransmits(stream: &TcpStream) -> Result<u32> {
    // SAFETY: tcp_info is plain old data, for which all zeroes are valid.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = size_of_val(&info) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `info`.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &mut length,
        )
    };
    match result {
        0 => Ok(info.tcpi_total_retrans),
        _ => Err(io::Error::last_os_error().into()),
    }
}
