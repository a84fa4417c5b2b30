//! The HTTP server of `tandemgw web`: a process of its own, with a thread for each connection. It
//! serves files from the binary, and one stream of server-sent events to all clients.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

/// Connections at a time.
const MOST_CONNECTIONS: usize = 64;

/// The longest head of a request, in bytes.
const MOST_HEAD: usize = 8 * 1024;

/// How long a client may take to ask, or to read a piece.
const PATIENCE: Duration = Duration::from_secs(10);

/// Between two questions to the gateway, if there is no news.
const INTERVAL: Duration = Duration::from_secs(1);

/// Between two questions at least, however much news there is.
const CALM: Duration = Duration::from_millis(100);

/// Headers of every answer: the page loads nothing from elsewhere, runs no script but its own, and
/// can't be framed.
const HEADERS: &str = "Content-Security-Policy: default-src 'none'; script-src 'self'; style-src 'self'; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'\r\n\
    X-Content-Type-Options: nosniff\r\nReferrer-Policy: no-referrer\r\n\
    Cross-Origin-Opener-Policy: same-origin\r\nCross-Origin-Resource-Policy: same-origin\r\n\
    Cache-Control: no-store\r\nConnection: close\r\n";

/// A file of the page.
pub struct File {
    /// Its path, such as `/`.
    pub path: &'static str,
    /// Its type.
    pub kind: &'static str,
    /// The text of the page.
    pub text: &'static str,
}

/// The path of the stream.
pub const STREAM: &str = "/stream";

/// The last answer of the gateway, and its number.
#[derive(Default)]
struct Latest {
    state: Mutex<(u64, Arc<str>)>,
    changed: Condvar,
}

impl Latest {
    fn set(&self, text: String) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        *state = (state.0 + 1, text.into());
        self.changed.notify_all();
    }

    /// The first one after `number`.
    fn after(&self, number: u64) -> (u64, Arc<str>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while state.0 <= number {
            let waited = self.changed.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
        (state.0, Arc::clone(&state.1))
    }
}

/// Serves until the process ends. `ask` is called once a second, however many clients there are,
/// and gives one line. `watch` follows the gateway, and says when there is news: then `ask` is
/// called at once. It is called again after it has returned.
///
/// # Errors
/// If it can't listen there.
pub fn serve(
    listen: SocketAddr,
    files: &'static [File],
    ask: impl FnMut() -> String + Send + 'static,
    watch: impl FnMut(&dyn Fn()) + Send + 'static,
) -> io::Result<()> {
    let listener = TcpListener::bind(listen)?;
    let latest = Arc::new(Latest::default());
    follow(Arc::clone(&latest), ask, watch)?;
    let open = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming() {
        // One that is gone already.
        let Ok(stream) = stream else { continue };
        if open.load(Ordering::Relaxed) >= MOST_CONNECTIONS {
            drop(stream);
            continue;
        }
        let place = Place::take(&open);
        let latest = Arc::clone(&latest);
        let begun = thread::Builder::new().spawn(move || {
            let _place = place;
            // The client is gone, or too slow.
            let _ = handle(stream, listen.ip(), files, &latest);
        });
        // The machine has no more threads: the connection is closed.
        drop(begun);
    }
    Ok(())
}

/// Keeps the answer of the gateway up to date.
fn follow(
    latest: Arc<Latest>,
    mut ask: impl FnMut() -> String + Send + 'static,
    mut watch: impl FnMut(&dyn Fn()) + Send + 'static,
) -> io::Result<()> {
    let (tell, news) = mpsc::sync_channel(1);
    thread::Builder::new().spawn(move || {
        loop {
            latest.set(ask());
            thread::sleep(CALM);
            // The sender lives as long as the process.
            let _ = news.recv_timeout(INTERVAL - CALM);
        }
    })?;
    thread::Builder::new().spawn(move || {
        loop {
            // If it is full, there is news already.
            watch(&|| {
                let _ = tell.try_send(());
            });
            thread::sleep(INTERVAL);
        }
    })?;
    Ok(())
}

/// One of the connections at a time.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(open: &Arc<AtomicUsize>) -> Place {
        open.fetch_add(1, Ordering::Relaxed);
        Place(Arc::clone(open))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn handle(mut stream: TcpStream, own: IpAddr, files: &[File], latest: &Latest) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let head = read_head(&mut stream)?;
    match judge(&head, own) {
        Err((status, why)) => answer(&mut stream, status, "text/plain", why),
        Ok(path) if path == STREAM => tell(&mut stream, latest),
        Ok(path) => match files.iter().find(|file| file.path == path) {
            Some(file) => answer(&mut stream, "200 OK", file.kind, file.text),
            None => answer(
                &mut stream,
                "404 Not Found",
                "text/plain",
                "there is no such page\n",
            ),
        },
    }
}

fn read_head(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    let mut piece = [0; 1024];
    while !head.windows(4).any(|bytes| bytes == b"\r\n\r\n") && head.len() < MOST_HEAD {
        match stream.read(&mut piece)? {
            0 => break,
            length => head.extend_from_slice(&piece[..length]),
        }
    }
    Ok(head)
}

/// Why a request is refused: the status, and a sentence.
type Refusal = (&'static str, &'static str);

/// The path that is asked for. A page of another origin whose name leads to this address is
/// refused, for its requests name that origin as the host.
fn judge(head: &[u8], own: IpAddr) -> Result<String, Refusal> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut headers);
    let is_whole = request.parse(head).is_ok_and(|status| status.is_complete());
    let (Some(method), Some(path), true) = (request.method, request.path, is_whole) else {
        return Err(("400 Bad Request", "this is not a request\n"));
    };
    if method != "GET" {
        return Err(("405 Method Not Allowed", "this page only shows\n"));
    }
    let named = request
        .headers
        .iter()
        .filter(|header| header.name.eq_ignore_ascii_case("host"));
    let named: Vec<&str> = named
        .map(|header| std::str::from_utf8(header.value).unwrap_or_default())
        .collect();
    match named.as_slice() {
        [host] if is_own(host, own) => Ok(path.split('?').next().unwrap_or(path).to_owned()),
        _ => Err((
            "403 Forbidden",
            "this host is not called so: use localhost\n",
        )),
    }
}

/// Whether a `Host` names this server.
fn is_own(host: &str, own: IpAddr) -> bool {
    let name = match host.parse::<SocketAddr>() {
        Ok(end) => return end.ip() == own || end.ip().is_loopback(),
        Err(_) => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    let addr = name.parse::<IpAddr>();
    name.eq_ignore_ascii_case("localhost") || addr.is_ok_and(|it| it == own || it.is_loopback())
}

fn answer(stream: &mut TcpStream, status: &str, kind: &str, text: &str) -> io::Result<()> {
    let length = text.len();
    let head = format!(
        "HTTP/1.1 {status}\r\n{HEADERS}Content-Type: {kind}; charset=utf-8\r\nContent-Length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(text.as_bytes())
}

/// Server-sent events (HTML, section 9.2), until the client is gone.
fn tell(stream: &mut TcpStream, latest: &Latest) -> io::Result<()> {
    let head = format!("HTTP/1.1 200 OK\r\n{HEADERS}Content-Type: text/event-stream\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    let mut number = 0;
    loop {
        let (next, text) = latest.after(number);
        number = next;
        stream.write_all(format!("id: {number}\ndata: {text}\n\n").as_bytes())?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_request_for_a_page_of_this_host_is_answered() {
        let own = IpAddr::from([127, 0, 0, 1]);
        let ask =
            |line: &str, host: &str| judge(format!("{line}\r\n{host}\r\n\r\n").as_bytes(), own);
        for host in [
            "localhost",
            "localhost:10748",
            "127.0.0.1:80",
            "[::1]:10748",
            "LOCALHOST",
        ] {
            let path = ask("GET /app.js?v=1 HTTP/1.1", &format!("Host: {host}"));
            assert_eq!(path.as_deref(), Ok("/app.js"), "{host}");
        }
        for host in [
            "Host: evil.example",
            "Host: 10.0.0.1",
            "X: y",
            "Host: a\r\nHost: localhost",
        ] {
            let refused = ask("GET / HTTP/1.1", host).unwrap_err();
            assert!(refused.0.starts_with("403"), "{host}");
        }
        let refused = ask("POST / HTTP/1.1", "Host: localhost").unwrap_err();
        assert!(refused.0.starts_with("405"));
        for head in [
            "",
            "GET",
            "GET / HTTP/1.1\r\nHost: localhost\r\n",
            "\u{1}\r\n\r\n",
        ] {
            assert!(
                judge(head.as_bytes(), own)
                    .unwrap_err()
                    .0
                    .starts_with("400")
            );
        }
    }
}
