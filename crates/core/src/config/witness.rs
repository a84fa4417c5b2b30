//! `[ha.witness]`

use std::path::PathBuf;
use std::time::Duration;

use super::diagnostic::Report;
use super::reader::{At, Span, Table};

/// `[ha.witness]`: an etcd cluster that says which unit may have a group where the units can't tell
/// who lives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Witness {
    /// `endpoints`: URLs of its members, at least one.
    pub endpoints: Vec<String>,
    /// `ca`: a file with the certificates (PEM) that signed theirs.
    pub ca: Option<PathBuf>,
    /// `cert`: a file with this unit's certificate (PEM).
    pub cert: Option<PathBuf>,
    /// `key`: a file with its private key (PEM).
    pub key: Option<PathBuf>,
    /// `user` of etcd.
    pub user: Option<String>,
    /// `password-file`: the first line is the user's password.
    pub password_file: Option<PathBuf>,
    /// `prefix` of the keys, default `tandemgw`.
    pub prefix: String,
    /// `lease`, default 5 s; 2 s to 60 s: how long a group stays with a unit that is not heard.
    pub lease: Duration,
    /// `timeout`, default 1 s; 100 ms to 10 s: how long a unit waits for an answer.
    pub timeout: Duration,
}

/// The most members of an etcd cluster that are named.
const MOST_ENDPOINTS: usize = 16;

/// Reads `[ha.witness]`; none after an error.
pub(super) fn read(mut table: Table<'_>) -> Option<Witness> {
    let report = table.report;
    let errors = report.errors();
    let endpoints = table.list::<String>("endpoints");
    let [ca, cert, key, password] =
        ["ca", "cert", "key", "password-file"].map(|name| read_path(&mut table, name));
    let user = table.take::<String>("user");
    let prefix = table.take::<String>("prefix");
    let mut witness = Witness::default();
    table.fill(&mut witness);
    check_endpoints(report, &table.header, &endpoints);
    let https = endpoints.iter().find(|at| at.value.starts_with("https://"));
    if let Some(at) = https.filter(|_| ca.is_none()) {
        let hint = "name the file with `ca`";
        let what = "who signed the certificate of this member?";
        report.error(&at.span, what, hint);
    }
    must_be_both(report, ("cert", &cert), ("key", &key));
    must_be_both(report, ("user", &user), ("password-file", &password));
    if let Some(at) = &prefix
        && (at.value.is_empty() || at.value.len() > 200 || at.value.contains(char::is_whitespace))
    {
        let hint = "write 1 to 200 characters without spaces";
        report.error(&at.span, "this can't begin a key", hint);
    }
    table.finish();
    (report.errors() == errors).then(|| Witness {
        endpoints: endpoints.into_iter().map(|at| at.value).collect(),
        ca: ca.map(|at| at.value),
        cert: cert.map(|at| at.value),
        key: key.map(|at| at.value),
        user: user.map(|at| at.value),
        password_file: password.map(|at| at.value),
        prefix: prefix.map_or_else(|| "tandemgw".to_owned(), |at| at.value),
        ..witness
    })
}

/// A file that another process reads, which may have another working directory.
fn read_path(table: &mut Table<'_>, name: &'static str) -> Option<At<PathBuf>> {
    let At { value, span } = table.take::<String>(name)?;
    let path = PathBuf::from(value);
    if !path.is_absolute() {
        let hint = "write the whole path, from `/` on";
        table
            .report
            .error(&span, format!("`{}` is relative", path.display()), hint);
    }
    Some(At { value: path, span })
}

fn check_endpoints(report: &Report, header: &Span, endpoints: &[At<String>]) {
    if endpoints.is_empty() || endpoints.len() > MOST_ENDPOINTS {
        let hint = "name the members of the etcd cluster, as in [\"https://10.0.0.1:2379\"]";
        let message = format!("a witness has 1 to {MOST_ENDPOINTS} endpoints");
        report.error(header, message, hint);
    }
    for At { value, span } in endpoints {
        if !is_endpoint(value) {
            let hint = "write it as http://HOST:PORT or https://HOST:PORT";
            report.error(span, format!("`{value}` is no endpoint"), hint);
        }
    }
}

/// Whether it is a URL of a scheme, a host and a port.
fn is_endpoint(text: &str) -> bool {
    let schemes = ["http://", "https://"];
    let rest = schemes.iter().find_map(|scheme| text.strip_prefix(scheme));
    let Some((host, port)) = rest.and_then(|rest| rest.rsplit_once(':')) else {
        return false;
    };
    let is_host = match host.strip_prefix('[').and_then(|it| it.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            let fits = |it: char| it.is_ascii_alphanumeric() || "-._".contains(it);
            !host.is_empty() && host.chars().all(fits)
        }
    };
    is_host && port.parse::<u16>().is_ok_and(|port| port > 0)
}

fn must_be_both<A, B>(report: &Report, one: (&str, &Option<At<A>>), other: (&str, &Option<At<B>>)) {
    let (span, given, missing) = match (one, other) {
        ((given, Some(at)), (missing, None)) => (&at.span, given, missing),
        ((missing, None), (given, Some(at))) => (&at.span, given, missing),
        _ => return,
    };
    let message = format!("`{given}` without `{missing}`");
    report.error(span, message, "write both, or neither");
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::config::options::tests::EVERYTHING;
    use crate::config::parse;

    /// The first mistake in a config whose witness has these lines.
    fn mistake(lines: &str) -> Option<String> {
        let end = EVERYTHING.find("[ha.witness]").unwrap();
        let text = format!("{}[ha.witness]\n{lines}\n", &EVERYTHING[..end]);
        let found = parse(Path::new("a.toml"), &text);
        found.err().map(|mistakes| format!("{mistakes:?}"))
    }

    #[test]
    fn a_witness_needs_endpoints_and_what_goes_with_them() {
        let http = "endpoints = [\"http://etcd.example:2379\"]";
        assert_eq!(mistake(http), None);
        for (lines, said) in [
            ("", "endpoints"),
            ("endpoints = []", "endpoints"),
            ("endpoints = [\"10.0.0.1:2379\"]", "is no endpoint"),
            ("endpoints = [\"http://10.0.0.1\"]", "is no endpoint"),
            ("endpoints = [\"http://10.0.0.1:2379/x\"]", "is no endpoint"),
            ("endpoints = [\"http://[10.0.0.1]:1\"]", "is no endpoint"),
            ("endpoints = [\"https://10.0.0.1:2379\"]", "who signed"),
            (&format!("{http}\ncert = \"/a\""), "`cert` without `key`"),
            (&format!("{http}\nuser = \"u\""), "without `password-file`"),
            (&format!("{http}\nca = \"a.pem\""), "is relative"),
            (&format!("{http}\nprefix = \"\""), "can't begin a key"),
            (&format!("{http}\nlease = \"1s\""), "lease"),
        ] {
            let found = mistake(lines).unwrap_or_default();
            assert!(found.contains(said), "{lines}: {found}");
        }
    }
}
