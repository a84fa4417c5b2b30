//! Clients whose sessions must live on: each sends lines and wants every one of them back.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{ChildStdin, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::lab::{Lab, SERVER, bracketed};
use crate::services::family_number;
use testkit::system::namespace::Namespace;
use testkit::system::process::{Process, wait_until};

const TCP_PORT: u16 = 7100;
const UDP_PORT: u16 = 7101;
/// A receive buffer that holds some seconds of [`Stream`], so that only the network can lose
/// datagrams: SO_RCVBUFFORCE, which needs the rights that the lab has anyway.
const BUFFER: &str = "setsockopt-int=1:33:8388608";
const LISTENER_BUFFER: &str = "setsockopt-listen=1:33:i8388608";

/// A server that sends back each line of any number of TCP connections.
pub fn line_server(server: &Namespace, address: &str) -> Process {
    let listener = match family_number(address) {
        6 => format!("TCP6-LISTEN:{TCP_PORT},ipv6only=1"),
        _ => format!("TCP4-LISTEN:{TCP_PORT}"),
    };
    // Its process for a client outlives it; one whose client is gone unheard ends by itself.
    let process = server.spawn(&format!(
        "socat -d -d -T 120 {listener},fork,reuseaddr PIPE"
    ));
    process.expect_stderr("listening socket", |line| line.contains("listening on"));
    process
}

/// An interactive TCP session with a [`line_server`].
pub struct Conversation {
    process: Process,
    stdin: ChildStdin,
    said: u32,
}

impl Conversation {
    /// Connects, and says the first line.
    #[track_caller]
    pub fn start(client: &Namespace, address: &str) -> Conversation {
        Conversation::with_options(client, address, "")
    }

    /// Connects from a source port of its own choice, and says the first line.
    #[track_caller]
    pub fn start_from(client: &Namespace, address: &str, port: u16) -> Conversation {
        Conversation::with_options(client, address, &format!(",sourceport={port}"))
    }

    fn with_options(client: &Namespace, address: &str, options: &str) -> Conversation {
        let (family, address) = (family_number(address), bracketed(address));
        let mut command = client.command("socat");
        command.args(["-", &format!("TCP{family}:{address}:{TCP_PORT}{options}")]);
        command.stdin(Stdio::piped());
        let mut process =
            Process::spawn(command, &format!("{}# lines to {address}", client.name()));
        let stdin = process.stdin();
        let mut conversation = Conversation {
            process,
            stdin,
            said: 0,
        };
        conversation.go_on();
        conversation
    }

    /// Says a line and waits for the answer.
    #[track_caller]
    pub fn go_on(&mut self) {
        self.said += 1;
        let line = format!("line {}", self.said);
        writeln!(self.stdin, "{line}").expect("the client runs");
        self.process.expect_stdout(&line, |heard| heard == line);
    }

    /// Ends it in order, and fails if anything was lost or came twice.
    #[track_caller]
    pub fn finish(mut self) {
        self.go_on();
        drop(self.stdin);
        let heard = self.process.finish(Duration::from_secs(30)).ok().stdout;
        let said: Vec<String> = (1..=self.said).map(|n| format!("line {n}")).collect();
        assert_eq!(heard.lines().collect::<Vec<_>>(), said);
    }
}

/// A [`Conversation`] over each family, from the first LAN host to the server.
pub struct Conversations {
    all: Vec<Conversation>,
    _servers: Vec<Process>,
}

impl Conversations {
    /// Starts them, with their servers.
    #[track_caller]
    pub fn start(lab: &Lab) -> Conversations {
        let servers = SERVER.map(|address| line_server(&lab.server, address));
        Conversations {
            _servers: servers.into(),
            ..Conversations::start_more(lab)
        }
    }

    /// Starts more of them with the servers that run already.
    #[track_caller]
    pub fn start_more(lab: &Lab) -> Conversations {
        Conversations {
            all: SERVER
                .map(|address| Conversation::start(&lab.lan1, address))
                .into(),
            _servers: Vec::new(),
        }
    }

    /// Says a line in each and waits for the answers.
    #[track_caller]
    pub fn go_on(&mut self) {
        for conversation in &mut self.all {
            conversation.go_on();
        }
    }

    /// Says a line in those from `first` on: 0 is that over IPv4, 1 that over IPv6.
    #[track_caller]
    pub fn go_on_from(&mut self, first: usize) {
        for conversation in &mut self.all[first..] {
            conversation.go_on();
        }
    }

    /// Ends them in order, and fails if anything was lost or came twice.
    #[track_caller]
    pub fn finish(self) {
        for conversation in self.all {
            conversation.finish();
        }
    }
}

/// A [`Stream`] over each family, from the second LAN host to the server.
pub struct Streams([Stream; 2]);

impl Streams {
    /// Starts them; returns once the first lines have come back.
    #[track_caller]
    pub fn start(lab: &Lab) -> Streams {
        Streams(SERVER.map(|address| Stream::start(&lab.lan2, &lab.server, address)))
    }

    /// Waits until more lines have come back than now.
    #[track_caller]
    pub fn wait_for_more(&self) {
        self.0.iter().for_each(Stream::wait_for_more);
    }

    /// Ends them, and fails if a line did not come back.
    #[track_caller]
    pub fn assert_whole(self) {
        for stream in self.0 {
            stream.assert_whole();
        }
    }
}

/// A datagram each millisecond, sent back by a server. Each side is socat, which may put several
/// lines into one datagram on a busy machine; what counts is the lines.
struct Stream {
    end: Arc<AtomicBool>,
    sender: JoinHandle<u32>,
    client: Process,
    _server: Process,
}

/// A line in one piece: a client that reads half of it sends it in two datagrams.
fn numbered(number: u32) -> Vec<u8> {
    format!("{number:07}\n").into_bytes()
}

impl Stream {
    /// Starts it; returns once the first lines have come back.
    #[track_caller]
    fn start(client: &Namespace, server: &Namespace, address: &str) -> Stream {
        let (family, address) = (family_number(address), bracketed(address));
        let only = if family == 6 { ",ipv6only=1" } else { "" };
        let server = server.spawn(&format!(
            "socat -d -d -T 60 UDP{family}-LISTEN:{UDP_PORT},{LISTENER_BUFFER}{only} PIPE"
        ));
        server.expect_stderr("bound socket", |line| line.contains("listening on"));
        let mut command = client.command("socat");
        let target = format!("UDP{family}:{address}:{UDP_PORT},{BUFFER}");
        // After the end of the input it waits for this long for answers still on their way.
        command.args(["-t", "3", "-", &target]);
        command.stdin(Stdio::piped());
        let mut client = Process::spawn(
            command,
            &format!("{}# datagrams to {target}", client.name()),
        );
        let mut stdin = client.stdin();
        let end = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&end);
        // The server makes another socket for whoever sends first, and may lose what comes
        // meanwhile.
        stdin
            .write_all(&numbered(1))
            .expect("the client takes a line");
        wait_until("the first datagram comes back", || {
            client.stdout().lines().count() == 1
        });
        let sender = thread::spawn(move || {
            let mut sent = 1;
            let start = Instant::now();
            while !told.load(Ordering::Relaxed) {
                if stdin.write_all(&numbered(sent + 1)).is_err() {
                    // The client has ended, which is found out below.
                    break;
                }
                sent += 1;
                let next = start + Duration::from_millis(1) * sent;
                thread::sleep(next.saturating_duration_since(Instant::now()));
            }
            sent
        });
        let stream = Stream {
            end,
            sender,
            client,
            _server: server,
        };
        wait_until("datagrams come back", || stream.returned() > 10);
        stream
    }

    /// How many lines have come back.
    fn returned(&self) -> usize {
        self.client.stdout().lines().count()
    }

    /// Waits until more lines have come back than now.
    #[track_caller]
    fn wait_for_more(&self) {
        let before = self.returned();
        wait_until("more datagrams come back", || {
            self.returned() > before + 100
        });
    }

    /// Ends it, and returns the numbers of the lines that did not come back.
    #[track_caller]
    fn finish(self) -> Vec<u32> {
        self.end.store(true, Ordering::Relaxed);
        let sent = self.sender.join().expect("the sender ended well");
        let output = self.client.finish(Duration::from_secs(60)).ok().stdout;
        let got: BTreeSet<u32> = output
            .lines()
            .map(|line| line.parse().expect("a number"))
            .collect();
        (1..=sent).filter(|n| !got.contains(n)).collect()
    }

    /// Ends it, and fails if a line did not come back.
    #[track_caller]
    fn assert_whole(self) {
        let lost = self.finish();
        assert!(lost.is_empty(), "{} were lost: {lost:?}", lost.len());
    }
}
