//! Requests to an etcd cluster, for processes beside the gateway: JSON over HTTP, as etcd's own
//! gateway takes it (since version 3.4, below `/v3`). Each request has a time by which it ends.

use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;

use super::clock;
use tandemgw_core::time::Time;

mod http;

use http::Connection;

/// Where an etcd cluster is, and how it knows this client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// URLs of members: `http://` or `https://`, a host and a port.
    pub endpoints: Vec<String>,
    /// Certificates (PEM) of those who signed the members' ones.
    pub ca: Option<PathBuf>,
    /// This client's certificate (PEM) and private key, if it has one.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// A user, and the file whose first line is the password.
    pub user: Option<(String, PathBuf)>,
}

/// Why there is no answer.
#[derive(Debug)]
pub enum EtcdError {
    /// No member could be asked.
    Unreachable(String),
    /// A member has refused: etcd's words.
    Refused(String),
}

impl std::fmt::Display for EtcdError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            EtcdError::Unreachable(why) => f.write_str(why),
            EtcdError::Refused(why) => write!(f, "etcd refuses: {why}"),
        }
    }
}

/// A client, which stays with a member that answers.
pub struct Etcd {
    place: Place,
    /// The member to ask next.
    member: usize,
    connection: Option<Connection>,
    /// What a user has got for the password.
    token: Option<String>,
}

impl Etcd {
    /// A client of the cluster there; it connects when it is used.
    pub fn new(place: Place) -> Etcd {
        Etcd {
            place,
            member: 0,
            connection: None,
            token: None,
        }
    }

    /// Where the cluster is.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Sends a request, and returns the answer if it comes until then. Asks each member at most
    /// once: repeat only what may be done twice.
    ///
    /// # Errors
    /// Why there is none.
    pub fn ask(&mut self, path: &str, body: &Value, until: Time) -> Result<Value, EtcdError> {
        if self.token.is_none() && self.place.user.is_some() {
            self.log_in(until)?;
        }
        match self.send(path, body, until) {
            // The token is old, or that of a member that was started again.
            Err(EtcdError::Refused(why)) if why.contains("auth token") && self.token.is_some() => {
                self.log_in(until)?;
                self.send(path, body, until)
            }
            result => result,
        }
    }

    fn log_in(&mut self, until: Time) -> Result<(), EtcdError> {
        self.token = None;
        let Some((name, file)) = self.place.user.clone() else {
            return Ok(());
        };
        let text = std::fs::read_to_string(&file)
            .map_err(|error| EtcdError::Unreachable(format!("{}: {error}", file.display())))?;
        let password = text.lines().next().unwrap_or_default();
        let body = serde_json::json!({ "name": name, "password": password });
        let answer = self.send("/v3/auth/authenticate", &body, until)?;
        self.token = answer["token"].as_str().map(str::to_owned);
        Ok(())
    }

    fn send(&mut self, path: &str, body: &Value, until: Time) -> Result<Value, EtcdError> {
        let members = self.place.endpoints.len();
        let mut why = "no endpoint is named".to_owned();
        // The one that is connected may have ended meanwhile, and be there again.
        let attempts = members + usize::from(self.connection.is_some());
        for left in (1..=attempts).rev() {
            let now = clock::now();
            if now >= until {
                break;
            }
            let share = until.since(now) / u32::try_from(left).unwrap_or(1);
            match self.try_one(path, body, now + share) {
                Ok(value) => return answer(value),
                Err(error) => why = format!("{}: {error}", self.place.endpoints[self.member]),
            }
            if self.connection.take().is_none() {
                self.member = (self.member + 1) % members.max(1);
            }
        }
        Err(EtcdError::Unreachable(why))
    }

    fn try_one(&mut self, path: &str, body: &Value, until: Time) -> io::Result<Value> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => connect(&self.place, self.member, until)?,
        };
        let text = connection.post(path, &body.to_string(), self.token.as_deref(), until)?;
        // A stream of one message is a line.
        let value = serde_json::from_str(text.trim());
        // Some refusals are bare text.
        let shown = || text.trim().chars().take(200).collect::<String>();
        let value = value.map_err(|_| io::Error::other(shown()))?;
        self.connection = Some(connection);
        Ok(value)
    }
}

/// What the answer says.
fn answer(value: Value) -> Result<Value, EtcdError> {
    let error = value
        .get("error")
        .or_else(|| value.pointer("/error/message"));
    match error {
        None => Ok(value),
        Some(Value::String(why)) => Err(EtcdError::Refused(why.clone())),
        Some(other) => {
            let why = other.get("message").and_then(Value::as_str);
            let why = why.map_or_else(|| other.to_string(), str::to_owned);
            Err(EtcdError::Refused(why))
        }
    }
}

fn connect(place: &Place, member: usize, until: Time) -> io::Result<Connection> {
    let endpoint = place.endpoints.get(member).map_or("", String::as_str);
    let (scheme, end) = endpoint.split_once("://").unwrap_or(("http", endpoint));
    let mut why = io::Error::other("the name has no address");
    for address in end.to_socket_addrs()? {
        let left = until.since(clock::now()).max(Duration::from_millis(1));
        let stream = match TcpStream::connect_timeout(&address, left) {
            Ok(stream) => stream,
            Err(error) => {
                why = error;
                continue;
            }
        };
        stream.set_nodelay(true)?;
        if scheme == "http" {
            return Ok(Connection::plain(stream, end));
        }
        let host = end.rsplit_once(':').map_or(end, |(host, _)| host);
        let host = host.trim_matches(['[', ']']).to_owned();
        let name = ServerName::try_from(host).map_err(io::Error::other)?;
        return Connection::tls(stream, end, tls(place)?, name);
    }
    Err(why)
}

/// TLS with the files of that place, which may have changed since.
fn tls(place: &Place) -> io::Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    if let Some(file) = &place.ca {
        for root in certificates(file)? {
            roots.add(root).map_err(|error| named(file, &error))?;
        }
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots);
    let config = match &place.identity {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| named(key, &error))?;
            builder
                .with_client_auth_cert(certificates(certificate)?, secret)
                .map_err(|error| named(certificate, &error))?
        }
    };
    Ok(Arc::new(config))
}

fn certificates(file: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let all = CertificateDer::pem_file_iter(file).and_then(Iterator::collect);
    all.map_err(|error| named(file, &error))
}

fn named(file: &Path, why: &dyn std::fmt::Display) -> io::Error {
    io::Error::other(format!("{}: {why}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_told_in_the_words_of_etcd() {
        let refused = |text: &str| match answer(serde_json::from_str(text).unwrap()) {
            Err(EtcdError::Refused(why)) => why,
            other => panic!("{other:?}"),
        };
        assert_eq!(refused(r#"{"error":"denied","code":7}"#), "denied");
        assert_eq!(refused(r#"{"error":{"message":"lost"}}"#), "lost");
        assert!(answer(serde_json::json!({ "ID": "1" })).is_ok());
    }

    #[test]
    fn who_is_not_there_is_told_in_time() {
        let place = Place {
            endpoints: vec!["http://127.0.0.1:1".into(), "http://[::1]:1".into()],
            ..Place::default()
        };
        let until = clock::now() + Duration::from_secs(5);
        let why = Etcd::new(place).ask("/v3/kv/range", &Value::Null, until);
        assert!(matches!(why, Err(EtcdError::Unreachable(_))), "{why:?}");
        assert!(clock::now() < until);
    }
}
