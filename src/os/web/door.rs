//! Connections to the page: plain on loopback, TLS elsewhere.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::os::clock;
use tandemgw_core::time::Time;

/// How long a client may take to ask, its handshake included; or to read a piece.
const PATIENCE: Duration = Duration::from_secs(10);

/// How connections are made.
pub enum Door {
    /// Everybody between can read and change what passes: for loopback only.
    Plain,
    /// TLS 1.3.
    Tls(Arc<ServerConfig>),
}

impl Door {
    /// TLS with the certificates and the key of these files (PEM).
    ///
    /// # Errors
    /// What is wrong with which file.
    pub fn tls(certificate: &Path, key: &Path) -> io::Result<Door> {
        let named = |file: &Path, why: &dyn std::fmt::Display| {
            io::Error::other(format!("{}: {why}", file.display()))
        };
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(certificate)
            .and_then(Iterator::collect)
            .map_err(|error| named(certificate, &error))?;
        if chain.is_empty() {
            return Err(named(certificate, &"there is no certificate in it"));
        }
        let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| named(key, &error))?;
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|it| it.with_no_client_auth().with_single_cert(chain, secret))
            .map_err(|error| named(certificate, &error))?;
        Ok(Door::Tls(Arc::new(config)))
    }

    /// The scheme of its addresses.
    pub fn scheme(&self) -> &'static str {
        match self {
            Door::Plain => "http",
            Door::Tls(_) => "https",
        }
    }

    /// A connection that has just come.
    ///
    /// # Errors
    /// If it is gone already.
    pub fn let_in(&self, stream: TcpStream) -> io::Result<Connection> {
        stream.set_write_timeout(Some(PATIENCE))?;
        let stream = Timed {
            stream,
            until: clock::now() + PATIENCE,
        };
        Ok(match self {
            Door::Plain => Connection::Plain(stream),
            Door::Tls(config) => {
                let tls = ServerConnection::new(Arc::clone(config)).map_err(io::Error::other)?;
                Connection::Tls(Box::new(StreamOwned::new(tls, stream)))
            }
        })
    }
}

/// A connection with a client.
pub enum Connection {
    Plain(Timed),
    Tls(Box<StreamOwned<ServerConnection, Timed>>),
}

impl Connection {
    /// Says that nothing more comes: an answer that was cut off is not taken for a whole one.
    pub fn finish(&mut self) -> io::Result<()> {
        let stream = match self {
            Connection::Plain(timed) => &timed.stream,
            Connection::Tls(tls) => {
                tls.conn.send_close_notify();
                tls.flush()?;
                &tls.sock.stream
            }
        };
        stream.shutdown(Shutdown::Write)
    }
}

impl Read for Connection {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Connection::Plain(stream) => stream.read(buffer),
            Connection::Tls(stream) => stream.read(buffer),
        }
    }
}

impl Write for Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Connection::Plain(stream) => stream.write(bytes),
            Connection::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Connection::Plain(stream) => stream.flush(),
            Connection::Tls(stream) => stream.flush(),
        }
    }
}

/// A stream whose client must have asked by a point in time, however slowly it sends.
pub struct Timed {
    stream: TcpStream,
    until: Time,
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.until.since(clock::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        self.stream.read(buffer)
    }
}

impl Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}
