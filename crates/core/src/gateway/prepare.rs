//! The part of a reload that takes long, prepared beside the loop: it reads copies that nobody
//! changes, and only [`Gateway::install`](super::Gateway::install) puts the result in force.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use crate::config::{Change, Config, Difference};
use crate::flow::{Addr, GroupId, PolicyId};
use crate::nat;
use crate::policy::{Ruleset, TooManyPolicies};

use super::Gateway;
use super::effects::Effects;
use super::rules::{self, Basis};

/// How many differences of each kind are reported: an administrator reads no more.
const MOST_TOLD: usize = 1000;

/// Why a reload changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReloadError {
    /// Sessions are still being compared with the rules in force: see [`Gateway::is_reloading`].
    UnderWay,
    /// The rules changed since it was prepared.
    Superseded,
    /// The policies of both configs together are too many.
    TooManyPolicies(TooManyPolicies),
    /// No number is left for another address of a pool or forward.
    TooManyAddresses,
}

impl fmt::Display for ReloadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReloadError::UnderWay => f.write_str("a reload is under way: try again in a moment"),
            ReloadError::Superseded => {
                f.write_str("the configuration in force has changed meanwhile: try again")
            }
            ReloadError::TooManyPolicies(error) => error.fmt(f),
            ReloadError::TooManyAddresses => f.write_str(
                "there were too many addresses in pools and forwards since the start: restart",
            ),
        }
    }
}

impl std::error::Error for ReloadError {}

/// A prepared reload.
pub struct Prepared {
    pub(super) basis: Basis,
    pub(super) config: Arc<Config>,
    /// The changes that the parts of the gateway must follow.
    pub(super) effects: Effects,
    /// None if policies, pools and forwards have not changed.
    pub(super) rules: Option<NewRules>,
    pub(super) told: Reloaded,
}

/// Policies, pools and forwards of a config.
pub(super) struct NewRules {
    pub(super) ruleset: Arc<Ruleset>,
    /// The policies whose ids belonged to others before, or to none.
    pub(super) newcomers: Vec<PolicyId>,
    /// None if pools and forwards have not changed.
    pub(super) addresses: Option<Addresses>,
}

/// The addresses of a config.
pub(super) struct Addresses {
    /// Pools and forwards.
    pub(super) layout: nat::Layout,
    /// The addresses that the gateway answers for, by port.
    pub(super) own: Vec<Vec<(Addr, GroupId)>>,
    /// The groups with new addresses.
    pub(super) grown: BTreeSet<GroupId>,
}

impl Addresses {
    fn new(old: &Config, new: &Config) -> Addresses {
        let layout = nat::Layout::new(new);
        let own = rules::addresses(new, layout.groups());
        let before = rules::addresses(old, &nat::groups(old));
        let mut grown = BTreeSet::new();
        for (own, before) in own.iter().zip(&before) {
            let before: BTreeSet<&(Addr, GroupId)> = before.iter().collect();
            let new = own.iter().filter(|own| !before.contains(own));
            grown.extend(new.map(|(_, group)| *group));
        }
        Addresses { layout, own, grown }
    }
}

/// The effect of a reload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// Changes applied at once, up to a thousand.
    pub applied: Vec<Difference>,
    /// Changes that need a restart, up to a thousand.
    pub waiting: Vec<Difference>,
    /// How many more have changed, or need a restart.
    pub more: usize,
    /// The addresses that the gateway answers for, or translates to, may have changed.
    pub addresses_changed: bool,
    /// There may be other peers, or they have other addresses or keys: see
    /// [`Gateway::peer_settings`].
    pub peers_changed: bool,
    /// Other ports, or other groups of a port, may have multicast.
    pub multicast_changed: bool,
}

/// The rules in force before a reload. Dropping them takes long if there are many policies.
pub struct Retired {
    _basis: Basis,
    _addresses: Option<FormerAddresses>,
}

/// The addresses that were in force, by port, and the policies and forwards that translated to
/// them.
pub(super) type FormerAddresses = (Vec<Vec<(Addr, GroupId)>>, nat::Layout);

impl Prepared {
    /// Works out the changes from `basis` to `wanted`.
    ///
    /// # Errors
    /// If there are too many policies.
    pub fn new(basis: Basis, wanted: &Config) -> Result<Prepared, ReloadError> {
        let old = &basis.config;
        let Change {
            config,
            mut applied,
            live,
            mut waiting,
        } = Change::new(old, wanted);
        let effects = Effects::of(live);
        // The policies decide on which port the address of a pool is at home.
        let addresses_changed = effects.addresses || effects.rules && !config.nat_pools.is_empty();
        let ruleset = effects
            .rules
            .then(|| basis.ruleset.succeeded_by(&config).map(Arc::new))
            .transpose()
            .map_err(ReloadError::TooManyPolicies)?;
        let rules = ruleset.map(|ruleset| NewRules {
            newcomers: ruleset.newcomers(&basis.ruleset),
            addresses: effects.addresses.then(|| Addresses::new(old, &config)),
            ruleset,
        });
        let count = applied.len() + waiting.len();
        applied.truncate(MOST_TOLD);
        waiting.truncate(MOST_TOLD);
        let told = Reloaded {
            more: count - applied.len() - waiting.len(),
            applied,
            waiting,
            addresses_changed,
            peers_changed: effects.peers,
            multicast_changed: effects.multicast,
        };
        Ok(Prepared {
            basis,
            config: Arc::new(config),
            effects,
            rules,
            told,
        })
    }
}

impl Retired {
    pub(super) fn new(basis: Basis, addresses: Option<FormerAddresses>) -> Retired {
        Retired {
            _basis: basis,
            _addresses: addresses,
        }
    }
}

impl Gateway {
    /// The rules in force, for a thread that prepares a reload beside the loop. While it is lent,
    /// nothing changes it.
    pub fn basis(&self) -> Basis {
        self.rules.basis()
    }

    /// Whether a [`Basis`] is still in use: no switch can be set then.
    pub fn is_lent(&self) -> bool {
        self.rules.is_lent()
    }

    /// Whether the basis of a prepared reload is still in force; otherwise it must be prepared
    /// again.
    pub fn is_current(&self, prepared: &Prepared) -> bool {
        self.rules.is_current(&prepared.basis)
    }
}
