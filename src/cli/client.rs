//! The connection to a running gateway through its control socket. Each failure is explained in one
//! line.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use socket2::{Domain, SockAddr, Socket, Type};
use tandemgw_core::control::protocol::{DONE, ErrorCode, Failure, Request, SIGN_OF_LIFE, Status};

use super::{EXIT_NOT_RUNNING, EXIT_USAGE};

/// Where gateways put their sockets by default.
const SOCKET_FOLDER: &str = "/run/tandemgw";

/// How long a gateway may be silent. Each piece of an answer restarts this time.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// The longest line of an answer, far longer than a gateway sends.
const MAX_LINE: u64 = 16 << 20;

/// Why there is no answer.
#[derive(Debug)]
pub enum ClientError {
    /// No gateway is running there.
    NotRunning(String),
    /// This user may not connect to it.
    NotAllowed(String),
    /// The gateway refused.
    Refused(Failure),
    /// There may be a gateway, but it does not answer.
    Failed(String),
    /// Handling a line of the answer failed.
    Output(io::Error),
}

impl ClientError {
    /// The exit code for it.
    pub fn code(&self) -> u8 {
        match self {
            ClientError::NotRunning(_) => EXIT_NOT_RUNNING,
            ClientError::Refused(failure) if failure.code().is_usage() => EXIT_USAGE,
            _ => 1,
        }
    }
}

impl std::fmt::Display for ClientError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ClientError::NotRunning(text)
            | ClientError::NotAllowed(text)
            | ClientError::Failed(text) => f.write_str(text),
            ClientError::Refused(failure) => f.write_str(&failure.error),
            ClientError::Output(error) => write!(f, "can't write the answer: {error}"),
        }
    }
}

impl From<io::Error> for ClientError {
    fn from(error: io::Error) -> ClientError {
        ClientError::Output(error)
    }
}

/// The fields of a status that every version has.
#[derive(Deserialize)]
struct Named {
    version: String,
}

/// Parses a line of an answer as its type.
pub fn parse<T: DeserializeOwned>(line: &str) -> Result<T, ClientError> {
    serde_json::from_str(line).map_err(|error| {
        ClientError::Failed(format!(
            "the running gateway is of another version, and its answer is not understood ({error}): \
             use its own program, or --json"
        ))
    })
}

/// A connection to a gateway, which serves any number of requests.
pub struct Client {
    path: PathBuf,
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects to the gateway at `socket`, or to the only one that runs here.
    pub fn connect(socket: Option<&Path>, patience: Duration) -> Result<Client, ClientError> {
        match socket {
            Some(path) => Client::open(path, patience),
            None => Client::find(Path::new(SOCKET_FOLDER), patience),
        }
    }

    /// The path of its socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Sends a request and hands each line of the answer to `each`.
    pub fn ask(
        &mut self,
        request: &Request,
        mut each: impl FnMut(&str) -> Result<(), ClientError>,
    ) -> Result<(), ClientError> {
        match self.exchange(request, &mut each) {
            Err(ClientError::Refused(failure)) if failure.code() == ErrorCode::UnknownRequest => {
                Err(self.explain_unknown(failure))
            }
            result => result,
        }
    }

    /// The state of the gateway.
    pub fn status(&mut self) -> Result<Status, ClientError> {
        let mut status = Err(self.no_gateway());
        self.exchange(&Request::Status, &mut |line| {
            status = parse(line);
            Ok(())
        })?;
        status
    }

    /// The path of the socket, and the bare connection, which has no timeout.
    pub fn into_stream(self) -> (PathBuf, UnixStream) {
        let stream = self.stream.into_inner();
        // It fails for a time of zero only.
        let _ = stream.set_read_timeout(None);
        (self.path, stream)
    }

    fn exchange(
        &mut self,
        request: &Request,
        each: &mut dyn FnMut(&str) -> Result<(), ClientError>,
    ) -> Result<(), ClientError> {
        let sent = send(request, self.stream.get_ref());
        sent.map_err(|error| self.broken(&error, false))?;
        let mut is_begun = false;
        let mut line = String::new();
        loop {
            line.clear();
            let read = self.stream.by_ref().take(MAX_LINE).read_line(&mut line);
            match read.map_err(|error| self.broken(&error, is_begun))? {
                0 => return Err(self.broken(&ErrorKind::UnexpectedEof.into(), is_begun)),
                _ if !line.starts_with('{') || !line.ends_with("}\n") => {
                    return Err(self.no_gateway());
                }
                _ => is_begun = true,
            }
            let line = line.trim_end();
            if line == DONE {
                return Ok(());
            }
            if let Some(failure) = Failure::parse(line) {
                return Err(ClientError::Refused(failure));
            }
            if line != SIGN_OF_LIFE {
                each(line)?;
            }
        }
    }

    fn open(path: &Path, patience: Duration) -> Result<Client, ClientError> {
        let connected = connect(path, patience).map_err(|error| connect_error(path, &error));
        Ok(Client {
            path: path.to_owned(),
            stream: BufReader::new(connected?),
        })
    }

    /// Connects to the only gateway that has its socket in `folder`. A gateway that was killed
    /// leaves its socket behind.
    fn find(folder: &Path, patience: Duration) -> Result<Client, ClientError> {
        let (mut alive, mut failed) = (Vec::new(), Vec::new());
        for path in sockets(folder)? {
            match Client::open(&path, patience) {
                Ok(client) => alive.push(client),
                Err(error) => failed.push(error),
            }
        }
        match (alive.len(), failed.len()) {
            (1, _) => Ok(alive.remove(0)),
            (0, 1..) => Err(failed.remove(0)),
            (0, 0) => Err(ClientError::NotRunning(format!(
                "no running gateway: there is no socket in {}; name one with --socket",
                folder.display()
            ))),
            _ => {
                let paths = alive.iter().map(|client| client.path.display().to_string());
                Err(ClientError::Failed(format!(
                    "several gateways run here; choose with --socket: {}",
                    paths.collect::<Vec<_>>().join(", ")
                )))
            }
        }
    }

    fn broken(&self, error: &io::Error, is_begun: bool) -> ClientError {
        let path = self.path.display();
        let sentence = match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => format!(
                "the gateway at {path} does not answer: it is stopped or overloaded, or has too many clients"
            ),
            ErrorKind::InvalidData => return self.no_gateway(),
            _ if is_begun => format!(
                "the gateway at {path} closed the connection in the middle of its answer: it has probably ended"
            ),
            ErrorKind::UnexpectedEof | ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => {
                format!(
                    "{path} closes the connection without an answer: the gateway has just ended, or it is another program's socket"
                )
            }
            _ => format!("{path}: {error}"),
        };
        ClientError::Failed(sentence)
    }

    fn no_gateway(&self) -> ClientError {
        ClientError::NotRunning(format!(
            "{} is the socket of another program, not of a gateway",
            self.path.display()
        ))
    }

    /// A gateway that does not know a request has another version, which its status says.
    fn explain_unknown(&mut self, failure: Failure) -> ClientError {
        let own = env!("CARGO_PKG_VERSION");
        let mut named = None;
        let asked = self.exchange(&Request::Status, &mut |line| {
            named = Some(parse::<Named>(line)?);
            Ok(())
        });
        match asked.map(|()| named) {
            Ok(Some(Named { version })) => ClientError::Failed(format!(
                "the running gateway is tandemgw {version} and does not know this request of tandemgw {own}: \
                 restart it, or use its own program"
            )),
            _ => ClientError::Refused(failure),
        }
    }
}

/// Writes a request line.
pub fn send(request: &Request, mut to: impl Write) -> io::Result<()> {
    let mut line = serde_json::to_string(request)?;
    line.push('\n');
    to.write_all(line.as_bytes())
}

/// Like `UnixStream::connect`, which would wait forever for a process that accepts nobody.
fn connect(path: &Path, patience: Duration) -> io::Result<UnixStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_write_timeout(Some(patience))?;
    socket.set_read_timeout(Some(patience))?;
    socket.connect(&SockAddr::unix(path)?)?;
    Ok(UnixStream::from(std::os::fd::OwnedFd::from(socket)))
}

fn connect_error(path: &Path, error: &io::Error) -> ClientError {
    let shown = path.display();
    let not_running = |what: &str| ClientError::NotRunning(format!("no running gateway: {what}"));
    match (error.kind(), std::fs::metadata(path)) {
        (ErrorKind::PermissionDenied, _) => ClientError::NotAllowed(format!(
            "no permission to use {shown}: run this as the user of the gateway (root)"
        )),
        (ErrorKind::WouldBlock | ErrorKind::TimedOut, _) => ClientError::Failed(format!(
            "the gateway at {shown} accepts no connection: it is stopped or overloaded"
        )),
        (_, Ok(file)) if file.is_dir() => not_running(&match sockets(path).as_deref() {
            Ok([first, ..]) => format!(
                "{shown} is a folder; did you mean --socket {}?",
                first.display()
            ),
            _ => format!("{shown} is a folder without sockets"),
        }),
        (_, Ok(file)) if !file.file_type().is_socket() => {
            not_running(&format!("{shown} is a file, not a socket"))
        }
        (ErrorKind::NotFound, _) => not_running(&format!("{shown} does not exist")),
        (ErrorKind::ConnectionRefused, _) => not_running(&format!(
            "no gateway listens at {shown}; if it was killed, restart it"
        )),
        // A datagram socket, say.
        (_, Ok(_)) => not_running(&format!(
            "{shown} is the socket of another program ({error})"
        )),
        _ => not_running(&format!("{shown}: {error}")),
    }
}

/// The sockets in a folder, by name.
fn sockets(folder: &Path) -> Result<Vec<PathBuf>, ClientError> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            return Err(ClientError::NotAllowed(format!(
                "no permission to look into {}: run this as the user of the gateway (root)",
                folder.display()
            )));
        }
        Err(_) => return Ok(Vec::new()),
    };
    let paths = entries.flatten().map(|entry| entry.path());
    let mut sockets: Vec<PathBuf> = paths
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "sock")
        })
        .collect();
    sockets.sort();
    Ok(sockets)
}
