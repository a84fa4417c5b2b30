//! The part of HTTP/1.1 that a scrape needs (RFC 9112): requests without a body, one per
//! connection.

use std::fmt::Write;

/// The longest request, with its headers, in bytes. Prometheus sends some 300.
pub const MAX_REQUEST: usize = 8 * 1024;

/// Header lines of a request.
const MAX_HEADERS: usize = 64;

/// A client's request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// The requested page.
    pub target: Target,
    /// Only the head of the answer is requested (`HEAD`).
    pub head_only: bool,
}

/// The requested page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The page of metrics: `GET /metrics`.
    Metrics,
    /// A short text that says where the metrics are.
    Index,
    /// Only a status line; then the connection is closed.
    Error(Status),
}

/// The status of an answer (RFC 9110, section 15).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// 200
    Ok,
    /// 400: no HTTP.
    BadRequest,
    /// 404: there is nothing at that path.
    NotFound,
    /// 405: neither GET nor HEAD.
    MethodNotAllowed,
    /// 431: longer than [`MAX_REQUEST`].
    TooLarge,
}

impl Status {
    fn line(self) -> &'static str {
        match self {
            Status::Ok => "200 OK",
            Status::BadRequest => "400 Bad Request",
            Status::NotFound => "404 Not Found",
            Status::MethodNotAllowed => "405 Method Not Allowed",
            Status::TooLarge => "431 Request Header Fields Too Large",
        }
    }
}

/// Reads a request; `None` if it is not complete yet. Looks at no more than [`MAX_REQUEST`] bytes.
pub fn parse(bytes: &[u8]) -> Option<Request> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let error = |status| {
        Some(Request {
            target: Target::Error(status),
            head_only: false,
        })
    };
    match request.parse(&bytes[..bytes.len().min(MAX_REQUEST)]) {
        Ok(httparse::Status::Partial) if bytes.len() >= MAX_REQUEST => error(Status::TooLarge),
        Ok(httparse::Status::Partial) => None,
        Ok(httparse::Status::Complete(_)) => {
            let head_only = request.method == Some("HEAD");
            let target = match (request.method, request.path) {
                (Some("GET" | "HEAD"), Some(path)) => target_of(path),
                _ => Target::Error(Status::MethodNotAllowed),
            };
            Some(Request { target, head_only })
        }
        Err(httparse::Error::TooManyHeaders) => error(Status::TooLarge),
        Err(_) => error(Status::BadRequest),
    }
}

fn target_of(path: &str) -> Target {
    match path.split('?').next() {
        Some("/metrics") => Target::Metrics,
        Some("/") => Target::Index,
        _ => Target::Error(Status::NotFound),
    }
}

/// The head of an answer whose body has `length` bytes.
pub fn head(status: Status, length: usize) -> String {
    let kind = match status {
        Status::Ok => "text/plain; version=0.0.4; charset=utf-8",
        _ => "text/plain; charset=utf-8",
    };
    let mut head = String::with_capacity(200);
    // Writing to a string does not fail.
    let _ = write!(
        head,
        "HTTP/1.1 {}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n",
        status.line()
    );
    if status == Status::MethodNotAllowed {
        head.push_str("Allow: GET, HEAD\r\n");
    }
    head.push_str("\r\n");
    head
}

/// The body of an answer that is not the metrics.
pub fn body(target: Target) -> String {
    match target {
        Target::Error(status) => format!("{}; the metrics are at /metrics\n", status.line()),
        Target::Index | Target::Metrics => {
            format!(
                "tandemgw {}; the metrics are at /metrics\n",
                env!("CARGO_PKG_VERSION")
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn target(text: &str) -> Option<Target> {
        parse(text.as_bytes()).map(|request| request.target)
    }

    #[test]
    fn requests_are_understood_once_they_are_complete() {
        let scrape = "GET /metrics HTTP/1.1\r\nHost: gw:10747\r\nAccept: */*\r\n\r\n";
        assert_eq!(target(scrape), Some(Target::Metrics));
        for length in 0..scrape.len() {
            assert_eq!(target(&scrape[..length]), None, "{length}");
        }
        assert_eq!(target("GET / HTTP/1.0\r\n\r\n"), Some(Target::Index));
        assert_eq!(
            target("GET /metrics?name=x HTTP/1.1\r\n\r\n"),
            Some(Target::Metrics)
        );
        let head = parse(b"HEAD /metrics HTTP/1.1\r\n\r\n");
        assert!(head.is_some_and(|head| head.head_only && head.target == Target::Metrics));
    }

    #[test]
    fn everything_else_is_an_error() {
        let error = |status| Some(Target::Error(status));
        assert_eq!(
            target("GET /etc/passwd HTTP/1.1\r\n\r\n"),
            error(Status::NotFound)
        );
        assert_eq!(
            target("POST /metrics HTTP/1.1\r\n\r\n"),
            error(Status::MethodNotAllowed)
        );
        assert_eq!(target("\x16\x03\x01\x02"), error(Status::BadRequest));
        assert_eq!(
            target("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
            error(Status::BadRequest)
        );
        let long = format!("GET /{} HTTP/1.1\r\n", "a".repeat(MAX_REQUEST));
        assert_eq!(target(&long), error(Status::TooLarge));
        let many = format!(
            "GET / HTTP/1.1\r\n{}\r\n",
            "a: b\r\n".repeat(MAX_HEADERS + 1)
        );
        assert_eq!(target(&many), error(Status::TooLarge));
    }

    proptest! {
        #[test]
        fn no_input_is_too_much(bytes in prop::collection::vec(any::<u8>(), 0..2 * MAX_REQUEST)) {
            let understood = parse(&bytes);
            prop_assert!(understood.is_some() || bytes.len() < MAX_REQUEST);
        }
    }
}
