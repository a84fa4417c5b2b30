//! Kernel parameters of interfaces, under `/proc/sys/net`.
//!
//! Paths, not dotted names: an interface may be called `eth0.100`. The kernel shows each process
//! the parameters of the network namespace that it is in.

use std::fmt;
use std::fs;
use std::io;
use std::path::PathBuf;

use tandemgw_core::flow::Family;

/// How many requests for a neighbour are broadcast, or sent to its group.
pub const MCAST_SOLICIT: &str = "mcast_solicit";

/// A parameter that could not be read or written.
#[derive(Debug)]
pub struct SysctlError {
    /// The file.
    pub path: PathBuf,
    /// The value to write; none if it was read.
    pub value: Option<u32>,
    /// Why not.
    pub source: io::Error,
}

impl fmt::Display for SysctlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match self.value {
            Some(value) => write!(f, "can't write {value} to {path}: {}", self.source),
            None => write!(f, "can't read {path}: {}", self.source),
        }
    }
}

impl std::error::Error for SysctlError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// Whether this kernel has the protocol at all.
pub fn has_family(family: Family) -> bool {
    path(family, "all", "forwarding").exists()
}

/// The value of parameter `key` of `interface` (or `all`); none if there is no such parameter or no
/// such interface.
pub fn get(family: Family, interface: &str, key: &str) -> Result<Option<u32>, SysctlError> {
    let path = path(family, interface, key);
    let source = match fs::read_to_string(&path) {
        Ok(text) => match text.trim().parse() {
            Ok(value) => return Ok(Some(value)),
            Err(error) => io::Error::other(error),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => error,
    };
    Err(SysctlError {
        path,
        value: None,
        source,
    })
}

/// Sets parameter `key` of `interface` (or `all`), unless it has the value already: so a read-only
/// `/proc/sys`, as in a container, is not a problem if somebody else has set it. Returns whether it
/// was changed.
pub fn set(family: Family, interface: &str, key: &str, value: u32) -> Result<bool, SysctlError> {
    if get(family, interface, key)? == Some(value) {
        return Ok(false);
    }
    let path = path(family, interface, key);
    match fs::write(&path, value.to_string()) {
        Ok(()) => Ok(true),
        Err(source) => Err(SysctlError {
            path,
            value: Some(value),
            source,
        }),
    }
}

/// Whether this process could set the parameter; nothing is written.
pub fn is_writable(family: Family, interface: &str, key: &str) -> bool {
    let path = path(family, interface, key);
    fs::File::options().write(true).open(path).is_ok()
}

/// The file of a parameter.
pub fn path(family: Family, interface: &str, key: &str) -> PathBuf {
    let family = match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    };
    let folder = match key {
        MCAST_SOLICIT => "neigh",
        _ => "conf",
    };
    ["/proc/sys/net", family, folder, interface, key]
        .iter()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_has_no_value() {
        assert_eq!(get(Family::V4, "no.such", "forwarding").unwrap(), None);
        assert!(get(Family::V4, "all", "forwarding").unwrap().is_some());
        let error = set(Family::V4, "no.such", "forwarding", 1).unwrap_err();
        assert!(error.to_string().contains("conf/no.such/forwarding"));
    }
}
