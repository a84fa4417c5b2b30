//! `tandemgw capture`: fetches packets from the gateway, and writes them as pcapng.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, ErrorKind, IsTerminal, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tandemgw::os::{clock, private_file, signal};
use tandemgw_core::control::protocol::capture::{Begin, Line, Packet};
use tandemgw_core::control::protocol::{DONE, Failure, Request};

use super::client::{Client, ClientError, PATIENCE, send};
use super::pcapng::{self, Writer};
use super::{fail, say};

pub fn capture(
    socket: Option<&Path>,
    write: &Path,
    count: Option<u64>,
    snapshot: Option<u32>,
    filter: Vec<String>,
) -> ExitCode {
    if is_stdout(write) && io::stdout().is_terminal() {
        return fail(
            1,
            "packets are not for a terminal: pipe them, as in `tandemgw capture --write - | tshark -r -`",
        );
    }
    let (path, stream) = match Client::connect(socket, PATIENCE) {
        Ok(client) => client.into_stream(),
        Err(error) => return fail(error.code(), error),
    };
    let request = Request::Capture {
        filter,
        snapshot,
        count,
    };
    let mut file = Target::new(write);
    let end = signal::end_stream_on_signal(&stream)
        .and_then(|()| send(&request, &stream))
        .map_err(|error| End::Connection(error.to_string()))
        .and_then(|()| fetch(stream, &mut file));
    let written = file.summary();
    match end {
        Ok(()) => ExitCode::SUCCESS,
        Err(End::Refused(error)) => fail(error.code(), error),
        Err(End::Connection(what)) => fail(1, format!("{}: {what}{written}", path.display())),
        // The reader of the pipe has seen enough.
        Err(End::File(error)) if error.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(End::File(error)) => fail(1, format!("{}: {error}{written}", write.display())),
    }
}

/// Why a capture ended before its end.
enum End {
    /// The gateway refused.
    Refused(ClientError),
    /// The connection to the gateway failed.
    Connection(String),
    /// The file failed.
    File(io::Error),
}

fn fetch(stream: UnixStream, file: &mut Target) -> Result<(), End> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    loop {
        line.clear();
        let length = reader
            .read_line(&mut line)
            .map_err(|error| End::Connection(error.to_string()))?;
        let text = line.trim_end_matches('\n');
        if length == 0 {
            file.flush().map_err(End::File)?;
            return Err(End::Connection("the gateway has ended".to_owned()));
        }
        if text == DONE {
            return file.flush().map_err(End::File);
        }
        if let Some(failure) = Failure::parse(text) {
            return Err(End::Refused(ClientError::Refused(failure)));
        }
        let said = serde_json::from_str(text).map_err(|_| {
            End::Connection("the gateway answers in the format of another version".to_owned())
        })?;
        file.write(&said).map_err(End::File)?;
        // Packets that the gateway sent together are written together.
        if reader.buffer().is_empty() {
            file.flush().map_err(End::File)?;
        }
    }
}

/// The output file, created after the gateway has agreed.
struct Target<'a> {
    path: &'a Path,
    writer: Option<Writer<BufWriter<Box<dyn Write>>>>,
    interfaces: BTreeMap<String, u32>,
    /// Nanoseconds since 1970 at boot.
    boot: u64,
    began: u64,
    snapshot: u32,
    written: u64,
    lost: u64,
    told: bool,
    comment: String,
    bytes: Vec<u8>,
}

/// Creates the file. An existing file is not overwritten.
fn create(path: &Path) -> io::Result<File> {
    private_file::create(path).map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => io::Error::new(
            ErrorKind::AlreadyExists,
            "it exists and is not overwritten; choose another name, or remove it first",
        ),
        _ => error,
    })
}

impl<'a> Target<'a> {
    fn new(path: &'a Path) -> Target<'a> {
        Target {
            path,
            writer: None,
            interfaces: BTreeMap::new(),
            boot: clock::offset_since_1970(),
            began: 0,
            snapshot: 0,
            written: 0,
            lost: 0,
            told: false,
            comment: String::new(),
            bytes: Vec::new(),
        }
    }

    fn write(&mut self, line: &Line<'_>) -> io::Result<()> {
        match line {
            Line::Begin(begin) => self.begin(begin),
            Line::Packet(packet) => self.packet(packet),
            Line::Statistics(statistics) => {
                self.lost += statistics.lost;
                self.told = true;
                let interface = self.interface(&statistics.port, "")?;
                let (start, end) = (self.boot + self.began, self.boot + statistics.at);
                self.writer()?.statistics(&pcapng::Statistics {
                    interface,
                    start,
                    end,
                    matched: statistics.matched,
                    lost: statistics.lost,
                })
            }
        }
    }

    fn begin(&mut self, begin: &Begin<'_>) -> io::Result<()> {
        let out: Box<dyn Write> = if is_stdout(self.path) {
            Box::new(io::stdout())
        } else {
            Box::new(create(self.path)?)
        };
        let program = concat!("tandemgw ", env!("CARGO_PKG_VERSION"));
        let comment = format!("node {}", begin.node);
        self.writer = Some(Writer::new(BufWriter::new(out), program, &comment)?);
        (self.began, self.snapshot) = (begin.at, begin.snapshot);
        for port in &begin.ports {
            self.interface(&port.name, &port.interface)?;
        }
        let what = self.path.display();
        say(format_args!(
            "tandemgw: capturing to {what}; Ctrl-C ends it\n"
        ));
        Ok(())
    }

    fn packet(&mut self, packet: &Packet<'_>) -> io::Result<()> {
        let interface = self.interface(&packet.port, "")?;
        self.bytes.clear();
        STANDARD
            .decode_vec(packet.data.as_bytes(), &mut self.bytes)
            .map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
        describe(&mut self.comment, packet);
        let Some(writer) = &mut self.writer else {
            return Err(too_early());
        };
        writer.packet(&pcapng::Packet {
            interface,
            time: self.boot + packet.at,
            outbound: packet.outbound,
            id: packet.id,
            length: packet.length,
            bytes: &self.bytes,
            comment: &self.comment,
        })?;
        self.written += 1;
        Ok(())
    }

    /// The number of a port in the file; it is described there when it is named first.
    fn interface(&mut self, name: &str, description: &str) -> io::Result<u32> {
        if let Some(number) = self.interfaces.get(name) {
            return Ok(*number);
        }
        let snapshot = self.snapshot;
        let number = self.writer()?.interface(name, description, snapshot)?;
        self.interfaces.insert(name.to_owned(), number);
        Ok(number)
    }

    fn writer(&mut self) -> io::Result<&mut Writer<BufWriter<Box<dyn Write>>>> {
        self.writer.as_mut().ok_or_else(too_early)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.as_mut().map_or(Ok(()), Writer::flush)
    }

    /// Prints how many packets there were, if it began; returns the same for an error.
    fn summary(&self) -> String {
        if self.writer.is_none() {
            return String::new();
        }
        let written = self.written;
        if !self.told {
            return format!("; {written} packets were written before that");
        }
        say(format_args!(
            "tandemgw: {written} packets, {} lost\n",
            self.lost
        ));
        if self.lost > 0 {
            say(
                "tandemgw: the capture could not keep up: use a filter, or -s 128 for headers only\n",
            );
        }
        String::new()
    }
}

fn is_stdout(path: &Path) -> bool {
    path == Path::new("-")
}

fn too_early() -> io::Error {
    io::Error::new(ErrorKind::InvalidData, "a packet before the beginning")
}

/// Describes the fate of a packet, for its comment.
fn describe(comment: &mut String, packet: &Packet<'_>) {
    comment.clear();
    let words = [
        ("in", &packet.in_port),
        ("out", &packet.out_port),
        ("verdict", &Some(packet.verdict.clone())),
        ("reason", &packet.reason),
        ("policy", &packet.policy),
    ];
    for (key, value) in words {
        if let Some(value) = value {
            let _ = write!(comment, "{key}={value} ");
        }
    }
    if let Some(session) = packet.session {
        let _ = write!(comment, "session={session} ");
    }
    for (word, said) in [
        ("translated ", packet.translated),
        ("released ", packet.released),
    ] {
        comment.push_str(if said { word } else { "" });
    }
    if packet.segment > 0 {
        let _ = write!(comment, "gso segment={}", packet.segment);
    }
    comment.truncate(comment.trim_end().len());
}
