//! A switch of `[ha]` that is set while the gateway runs.

use serde_json::{Value, json};

use crate::gateway::Gateway;
use crate::time::Time;

use super::ShellView;

/// Sets it; gives what to say.
pub fn set(
    gateway: &mut Gateway,
    shell: &ShellView,
    key: &str,
    value: &str,
    now: Time,
) -> Result<Value, String> {
    let switched = gateway.set_switch(now, key, value)?;
    let groups = &switched.config.groups;
    let kept: Vec<&str> = groups
        .iter()
        .filter(|group| key == "priority" && group.priority.is_some())
        .map(|group| group.name.as_str())
        .collect();
    Ok(json!({
        "key": key,
        "old": switched.old,
        "new": switched.new,
        "toml": switched.toml,
        "config": shell.config_file,
        "groups_with_their_own": kept,
    }))
}
