//! A status to test what is shown of it.

use tandemgw_core::control::protocol::Status;

/// The status of a healthy primary.
pub fn status() -> Status {
    serde_json::from_str(include_str!("sample.json")).expect("a status")
}
