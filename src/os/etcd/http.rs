//! A connection over which requests go one after the other (HTTP/1.1, RFC 9112).

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use crate::os::clock;
use tandemgw_core::time::Time;

/// The longest answer, in bytes.
const MOST: usize = 1 << 20;
/// Headers of an answer.
const MOST_HEADERS: usize = 64;

/// A stream both ways.
trait Stream: Read + Write {
    /// The socket below.
    fn socket(&self) -> &TcpStream;
}

impl Stream for TcpStream {
    fn socket(&self) -> &TcpStream {
        self
    }
}

impl Stream for StreamOwned<ClientConnection, TcpStream> {
    fn socket(&self) -> &TcpStream {
        &self.sock
    }
}

/// A connection to a server.
pub(super) struct Connection {
    stream: Box<dyn Stream>,
    host: String,
    /// What was read and belongs to no answer yet.
    read: Vec<u8>,
}

impl Connection {
    pub(super) fn plain(stream: TcpStream, host: &str) -> Connection {
        Connection::over(Box::new(stream), host)
    }

    /// TLS; the handshake comes with the first request.
    pub(super) fn tls(
        stream: TcpStream,
        host: &str,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> io::Result<Connection> {
        let client = ClientConnection::new(config, name).map_err(io::Error::other)?;
        Ok(Connection::over(
            Box::new(StreamOwned::new(client, stream)),
            host,
        ))
    }

    fn over(stream: Box<dyn Stream>, host: &str) -> Connection {
        Connection {
            stream,
            host: host.to_owned(),
            read: Vec::new(),
        }
    }

    /// Sends a request; returns the body of the answer, whatever its status.
    pub(super) fn post(
        &mut self,
        path: &str,
        body: &str,
        token: Option<&str>,
        until: Time,
    ) -> io::Result<String> {
        let token = token.map(|token| format!("Authorization: {token}\r\n"));
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n{}\r\n{body}",
            self.host,
            body.len(),
            token.unwrap_or_default()
        );
        self.wait_until(until)?;
        self.stream.write_all(request.as_bytes())?;
        self.stream.flush()?;
        loop {
            if let Some((length, body)) = whole(&self.read)? {
                self.read.drain(..length);
                return String::from_utf8(body).map_err(io::Error::other);
            }
            self.wait_until(until)?;
            let mut piece = [0; 4096];
            match self.stream.read(&mut piece) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(length) if self.read.len() + length <= MOST => {
                    self.read.extend_from_slice(&piece[..length]);
                }
                Ok(_) => return Err(io::Error::other("the answer is too long")),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return Err(io::Error::new(ErrorKind::TimedOut, "no answer in time"));
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn wait_until(&self, until: Time) -> io::Result<()> {
        let left = until.since(clock::now()).max(Duration::from_millis(1));
        self.stream.socket().set_read_timeout(Some(left))?;
        self.stream.socket().set_write_timeout(Some(left))
    }
}

/// The length of the answer at the start of `bytes`, and its body; none while it is not whole.
fn whole(bytes: &[u8]) -> io::Result<Option<(usize, Vec<u8>)>> {
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let parsed = response.parse(bytes).map_err(io::Error::other)?;
    let httparse::Status::Complete(head) = parsed else {
        return Ok(None);
    };
    let header = |name: &str| {
        let mut all = response.headers.iter();
        let found = all.find(|header| header.name.eq_ignore_ascii_case(name));
        found.and_then(|header| str::from_utf8(header.value).ok())
    };
    if header("Transfer-Encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
        return chunks(bytes, head);
    }
    let length = header("Content-Length").and_then(|value| value.trim().parse().ok());
    let length: usize = length.ok_or_else(|| io::Error::other("an answer without a length"))?;
    let end = head.saturating_add(length);
    Ok(bytes.get(head..end).map(|body| (end, body.to_vec())))
}

/// The same of a body in chunks (RFC 9112, section 7.1) that begins at `at`. Trailers are not read.
fn chunks(bytes: &[u8], mut at: usize) -> io::Result<Option<(usize, Vec<u8>)>> {
    let mut body = Vec::new();
    loop {
        let rest = bytes.get(at..).unwrap_or_default();
        let parsed = httparse::parse_chunk_size(rest);
        let parsed = parsed.map_err(|_| io::Error::other("a wrong chunk in the answer"))?;
        let httparse::Status::Complete((start, size)) = parsed else {
            return Ok(None);
        };
        let size = usize::try_from(size).unwrap_or(MOST).min(MOST);
        // Each chunk is followed by a line's end.
        let Some(chunk) = rest.get(start..start + size + 2) else {
            return Ok(None);
        };
        at += start + size + 2;
        if size == 0 {
            return Ok(Some((at, body)));
        }
        body.extend_from_slice(&chunk[..size]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(bytes: &[u8]) -> Option<(usize, String)> {
        let found = whole(bytes).unwrap();
        found.map(|(length, body)| (length, String::from_utf8(body).unwrap()))
    }

    #[test]
    fn an_answer_is_whole_when_its_last_byte_is_there() {
        let with_length = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
        let in_chunks =
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n";
        for answer in [&with_length[..], &in_chunks[..]] {
            for end in 0..answer.len() {
                assert_eq!(body(&answer[..end]), None, "{end}");
            }
            assert_eq!(body(answer), Some((answer.len(), "{}".to_owned())));
        }
    }

    #[test]
    fn wrong_answers_are_refused() {
        for wrong in [
            &b"HTTP/1.1 200 OK\r\n\r\n"[..],
            b"SSH-2.0-x\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxx\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
        ] {
            // The last one only waits, and is cut off by its length.
            let found = whole(wrong);
            assert!(matches!(found, Err(_) | Ok(None)), "{found:?}");
        }
    }
}
