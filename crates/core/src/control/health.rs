//! The health of the gateway, in the terms of the protocol.

use crate::gateway::{Gateway, Severity};
use crate::time::Time;

use super::protocol::{HealthState, HealthStatus, TroubleStatus};
use super::seconds;

/// Problems found at the gateway's last health check.
pub(super) fn health(gateway: &Gateway, now: Time) -> HealthStatus {
    let health = gateway.last_health();
    let standing = health.standing().iter();
    let troubles: Vec<TroubleStatus> = standing
        .map(|standing| TroubleStatus {
            state: match standing.severity {
                Severity::Warning => HealthState::Warning,
                Severity::Critical => HealthState::Critical,
            },
            reason: gateway.describe_trouble(standing.trouble, now),
            since: seconds(now.since(standing.since)),
        })
        .collect();
    match troubles.first() {
        None => HealthStatus {
            state: HealthState::Good,
            reason: None,
            since: seconds(now.since(health.well_since())),
            troubles,
        },
        Some(worst) => HealthStatus {
            state: worst.state,
            reason: Some(worst.reason.clone()),
            since: worst.since,
            troubles,
        },
    }
}
