//! Requests to the page: what is asked, and whether it comes from the page itself.

use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};

/// The longest head of a request, in bytes.
const MOST_HEAD: usize = 8 * 1024;

/// The longest body.
const MOST_BODY: usize = 8 * 1024;

/// Why a request is refused: the status, and a sentence.
pub(super) type Refusal = (&'static str, &'static str);

/// A request.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Ask {
    /// Whether it is a POST, with a body; otherwise a GET.
    pub is_post: bool,
    /// Without the query.
    pub path: String,
    /// The secret of its session.
    pub secret: Option<String>,
    /// JSON.
    pub body: String,
}

/// What the server is called.
pub(super) struct Names<'a> {
    /// `http` or `https`.
    pub scheme: &'a str,
    /// The address that the client has connected to.
    pub own: IpAddr,
    /// Its host names.
    pub hosts: &'a [String],
}

impl Names<'_> {
    /// Whether a `Host` is this server. A page of another origin whose name leads to this address
    /// is refused, for its requests name that origin as the host.
    fn are(&self, host: &str) -> bool {
        let is_own = |addr: IpAddr| {
            let addr = addr.to_canonical();
            addr == self.own.to_canonical()
                || self.own.to_canonical().is_loopback() && addr.is_loopback()
        };
        let name = match host.parse::<SocketAddr>() {
            Ok(end) => return is_own(end.ip()),
            Err(_) => host.rsplit_once(':').map_or(host, |(name, _)| name),
        };
        let is_name = |known: &str| name.eq_ignore_ascii_case(known);
        match host.trim_matches(['[', ']']).parse() {
            Ok(addr) => is_own(addr),
            Err(_) => match name.parse() {
                Ok(addr) => is_own(addr),
                Err(_) => {
                    let is_local = self.own.is_loopback() && is_name("localhost");
                    is_local || self.hosts.iter().any(|known| is_name(known))
                }
            },
        }
    }
}

/// A request that has come: the head, and what of the body came with it.
#[derive(Debug)]
struct Head {
    ask: Ask,
    length: usize,
}

/// Reads a request, or says why it is refused.
///
/// # Errors
/// If the client is gone, or too slow.
pub(super) fn read(stream: &mut impl Read, names: &Names<'_>) -> io::Result<Result<Ask, Refusal>> {
    let mut bytes = Vec::new();
    let end = loop {
        let end = bytes.windows(4).position(|bytes| bytes == b"\r\n\r\n");
        if end.is_some() || bytes.len() >= MOST_HEAD || !read_more(stream, &mut bytes)? {
            break end.map_or(bytes.len(), |end| end + 4);
        }
    };
    let Head { mut ask, length } = match judge(&bytes[..end], names) {
        Err(refusal) => return Ok(Err(refusal)),
        Ok(head) => head,
    };
    while bytes.len() - end < length && read_more(stream, &mut bytes)? {}
    let body = bytes.get(end..end + length);
    match body.map(|bytes| std::str::from_utf8(bytes)) {
        Some(Ok(text)) => ask.body = text.to_owned(),
        _ => return Ok(Err(("400 Bad Request", "this is not a request\n"))),
    }
    Ok(Ok(ask))
}

fn read_more(stream: &mut impl Read, bytes: &mut Vec<u8>) -> io::Result<bool> {
    let mut piece = [0; 1024];
    let length = stream.read(&mut piece)?;
    bytes.extend_from_slice(&piece[..length]);
    Ok(length > 0)
}

fn judge(head: &[u8], names: &Names<'_>) -> Result<Head, Refusal> {
    let bad = ("400 Bad Request", "this is not a request\n");
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut headers);
    let is_whole = request.parse(head).is_ok_and(|status| status.is_complete());
    let (Some(method), Some(path), true) = (request.method, request.path, is_whole) else {
        return Err(bad);
    };
    // The value of a header that may be there once.
    let one = |name: &str| -> Result<Option<&str>, Refusal> {
        let mut found = request
            .headers
            .iter()
            .filter(|header| header.name.eq_ignore_ascii_case(name))
            .map(|header| std::str::from_utf8(header.value).map_err(|_| bad));
        match (found.next(), found.next()) {
            (_, Some(_)) => Err(bad),
            (value, None) => value.transpose(),
        }
    };
    let host = one("host")?.filter(|host| names.are(host));
    let Some(host) = host else {
        let why = "this host is not called so: use localhost, its address, or a name of --host\n";
        return Err(("403 Forbidden", why));
    };
    let origin = format!("{}://{host}", names.scheme);
    if one("origin")?.is_some_and(|it| !it.eq_ignore_ascii_case(&origin)) {
        return Err(("403 Forbidden", "this request comes from another page\n"));
    }
    let is_post = match method {
        "GET" => false,
        "POST" => true,
        _ => return Err(("405 Method Not Allowed", "GET and POST are known here\n")),
    };
    let secret = one("authorization")?.and_then(|it| it.strip_prefix("Bearer "));
    Ok(Head {
        length: if is_post { length(one)? } else { 0 },
        ask: Ask {
            is_post,
            path: path.split('?').next().unwrap_or(path).to_owned(),
            secret: secret.map(str::to_owned),
            body: String::new(),
        },
    })
}

/// The length of a body. It must be JSON, which no form of another page can send.
fn length<'a>(one: impl Fn(&str) -> Result<Option<&'a str>, Refusal>) -> Result<usize, Refusal> {
    let kind = one("content-type")?.unwrap_or_default();
    if kind.split(';').next().map(str::trim) != Some("application/json") {
        return Err(("415 Unsupported Media Type", "a body must be JSON\n"));
    }
    if one("transfer-encoding")?.is_some() {
        return Err(("501 Not Implemented", "send the body as it is\n"));
    }
    match one("content-length")?.map(str::parse::<usize>) {
        Some(Ok(length)) if length <= MOST_BODY => Ok(length),
        Some(Ok(_)) => Err(("413 Content Too Large", "this body is too long\n")),
        _ => Err(("411 Length Required", "how long is the body?\n")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(request: &str, own: &str, scheme: &str) -> Result<Ask, Refusal> {
        let hosts = ["gw-a.example".to_owned()];
        let names = Names {
            scheme,
            own: own.parse().unwrap(),
            hosts: &hosts,
        };
        read(&mut request.as_bytes(), &names).unwrap()
    }

    fn get(host: &str, own: &str) -> Result<Ask, Refusal> {
        ask(
            &format!("GET /app.js?v=1 HTTP/1.1\r\nHost: {host}\r\n\r\n"),
            own,
            "http",
        )
    }

    #[test]
    fn only_a_request_to_this_host_is_answered() {
        let here = "127.0.0.1";
        for host in [
            "localhost",
            "localhost:10748",
            "127.0.0.1:80",
            "[::1]:10748",
            "[::1]",
            "LOCALHOST",
            "gw-a.example:10748",
        ] {
            let ask = get(host, here).unwrap();
            assert_eq!(
                (ask.path.as_str(), ask.is_post),
                ("/app.js", false),
                "{host}"
            );
        }
        for host in [
            "evil.example",
            "10.0.0.1",
            "a\r\nHost: localhost",
            "",
            "gw-a.example.evil",
        ] {
            assert!(get(host, here).is_err(), "{host}");
        }
        assert!(get("192.0.2.1:10748", "192.0.2.1").is_ok());
        assert!(get("192.0.2.1:10748", "::ffff:192.0.2.1").is_ok());
        assert!(get("[2001:db8::1]:10748", "2001:db8::1").is_ok());
        for host in ["localhost", "127.0.0.1", "192.0.2.2"] {
            assert!(get(host, "192.0.2.1").is_err(), "{host}");
        }
    }

    #[test]
    fn only_the_page_itself_may_send_something() {
        let post = |origin: &str, kind: &str| {
            let request = format!(
                "POST /act HTTP/1.1\r\nHost: localhost:1\r\n{origin}Content-Type: {kind}\r\n\
                 Content-Length: 2\r\nAuthorization: Bearer s\r\n\r\n{{}}"
            );
            ask(&request, "127.0.0.1", "http")
        };
        let json = "application/json; charset=utf-8";
        let asked = post("Origin: http://localhost:1\r\n", json).unwrap();
        assert_eq!(
            (asked.body.as_str(), asked.secret.as_deref()),
            ("{}", Some("s"))
        );
        assert!(post("", json).is_ok(), "no browser");
        for origin in [
            "http://evil.example",
            "https://localhost:1",
            "http://localhost:2",
            "null",
        ] {
            let said = post(&format!("Origin: {origin}\r\n"), json).unwrap_err();
            assert!(said.0.starts_with("403"), "{origin}");
        }
        for kind in [
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data",
        ] {
            assert!(post("", kind).unwrap_err().0.starts_with("415"), "{kind}");
        }
    }

    #[test]
    fn what_is_too_long_or_no_request_is_refused() {
        let status = |request: &str| ask(request, "127.0.0.1", "http").unwrap_err().0;
        let post = "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
        for (request, wanted) in [
            (String::new(), "400"),
            ("GET".to_owned(), "400"),
            ("GET / HTTP/1.1\r\nHost: localhost\r\n".to_owned(), "400"),
            ("\u{1}\r\n\r\n".to_owned(), "400"),
            (
                format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(9000)),
                "400",
            ),
            (
                "PUT / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned(),
                "405",
            ),
            (format!("{post}\r\n"), "411"),
            (format!("{post}Content-Length: -1\r\n\r\n"), "411"),
            (format!("{post}Content-Length: 9000\r\n\r\n"), "413"),
            (format!("{post}Content-Length: 9\r\n\r\n{{}}"), "400"),
            (
                format!("{post}Content-Length: 2\r\nContent-Length: 9\r\n\r\n{{}}"),
                "400",
            ),
            (
                format!("{post}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
                "501",
            ),
        ] {
            assert!(status(&request).starts_with(wanted), "{request}");
        }
    }
}
