//! Connections to the page: plain on loopback, TLS elsewhere.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use socket2::Socket;

use crate::os::clock;
use tandemgw_core::time::Time;

/// How long a client may take to ask, its handshake included; or to read a piece.
const PATIENCE: Duration = Duration::from_secs(10);

/// The files of TLS, as PEM.
pub struct TlsFiles<'a> {
    /// The certificate, and those that sign it.
    pub certificate: &'a Path,
    /// Its key.
    pub key: &'a Path,
    /// Who signs the certificates of clients, if they may have some.
    pub client_ca: Option<&'a Path>,
    /// Whether clients may have none.
    pub lets_others_in: bool,
}

/// How connections are made.
pub enum Door {
    /// Everybody between can read and change what passes: for loopback only.
    Plain,
    /// TLS 1.3.
    Tls(Arc<ServerConfig>),
}

impl Door {
    /// TLS with these files.
    ///
    /// # Errors
    /// What is wrong with which file.
    pub fn tls(files: &TlsFiles<'_>) -> io::Result<Door> {
        let TlsFiles {
            certificate, key, ..
        } = *files;
        let chain = certificates(certificate)?;
        let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| named(key, &error))?;
        let provider = Arc::new(default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| named(certificate, &error))?;
        let builder = match files.client_ca {
            None => builder.with_no_client_auth(),
            Some(file) => {
                let mut roots = RootCertStore::empty();
                for root in certificates(file)? {
                    roots.add(root).map_err(|error| named(file, &error))?;
                }
                let known = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                let known = match files.lets_others_in {
                    true => known.allow_unauthenticated(),
                    false => known,
                };
                builder
                    .with_client_cert_verifier(known.build().map_err(|error| named(file, &error))?)
            }
        };
        let config = builder.with_single_cert(chain, secret);
        Ok(Door::Tls(Arc::new(
            config.map_err(|error| named(certificate, &error))?,
        )))
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
    pub fn let_in(&self, stream: Socket) -> io::Result<Connection> {
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

fn certificates(file: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let all: Vec<_> = CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect)
        .map_err(|error| named(file, &error))?;
    match all.is_empty() {
        true => Err(named(file, &"there is no certificate in it")),
        false => Ok(all),
    }
}

fn named(file: &Path, why: &dyn std::fmt::Display) -> io::Error {
    io::Error::other(format!("{}: {why}", file.display()))
}

/// A connection with a client.
pub enum Connection {
    Plain(Timed),
    Tls(Box<StreamOwned<ServerConnection, Timed>>),
}

impl Connection {
    /// Whether the client has shown a certificate that is known here. It has, if it has asked for
    /// something: it shows it before.
    pub fn has_certificate(&self) -> bool {
        match self {
            Connection::Plain(_) => false,
            Connection::Tls(tls) => tls.conn.peer_certificates().is_some(),
        }
    }

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
    stream: Socket,
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
