//! Where the page is: at an address, or at a socket that is a file.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::str::FromStr;

use socket2::Socket;

use crate::os::socket_file;

/// Where the page is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// `ADDRESS:PORT`.
    Address(SocketAddr),
    /// The path of a socket; who may write it may look.
    File(PathBuf),
}

impl FromStr for Listen {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Listen, &'static str> {
        if text.contains('/') {
            return Ok(Listen::File(text.into()));
        }
        let why = "write ADDRESS:PORT, or the path of a socket, with a /";
        text.parse().map(Listen::Address).map_err(|_| why)
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listen::Address(address) => address.fmt(f),
            Listen::File(path) => path.display().fmt(f),
        }
    }
}

impl Listen {
    /// Whether only processes of this machine reach it.
    pub fn is_local(&self) -> bool {
        match self {
            Listen::Address(address) => address.ip().is_loopback(),
            Listen::File(_) => true,
        }
    }

    pub(super) fn open(&self) -> io::Result<Listener> {
        Ok(match self {
            Listen::Address(address) => Listener::Tcp(TcpListener::bind(address)?),
            Listen::File(path) => {
                let listener = socket_file::listen(path)?;
                listener.set_nonblocking(false)?;
                Listener::Unix(listener)
            }
        })
    }
}

pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// A client that has connected.
pub(super) struct Client {
    pub socket: Socket,
    /// The address that it has connected to; loopback if that is a file, since a browser comes to
    /// it by a forwarded port.
    pub own: IpAddr,
    /// Its address.
    pub source: IpAddr,
}

impl Listener {
    pub(super) fn accept(&self) -> io::Result<Client> {
        let here = IpAddr::V4(Ipv4Addr::LOCALHOST);
        Ok(match self {
            Listener::Tcp(listener) => {
                let (stream, source) = listener.accept()?;
                Client {
                    own: stream.local_addr()?.ip(),
                    source: source.ip(),
                    socket: stream.into(),
                }
            }
            Listener::Unix(listener) => Client {
                own: here,
                source: here,
                socket: listener.accept()?.0.into(),
            },
        })
    }
}
