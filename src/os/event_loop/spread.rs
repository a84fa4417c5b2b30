//! Routes with next hops on several ports: the kernel is told to follow the gateway's choice.

use tandemgw_core::flow::Family;
use tandemgw_core::in_quotes::InQuotes;
use tandemgw_core::route::Spread;

use super::super::netlink::NetlinkError;
use super::super::upkeep::Order;
use super::{Shell, Steering};

/// The state that the kernel was last told.
#[derive(Default)]
pub(super) struct Followed {
    /// The routes that it was made from.
    generation: u32,
    /// By family.
    spread: [Spread; 2],
}

impl Shell {
    /// Has the kernel follow, if the routes have changed.
    pub(super) fn follow_routes(&mut self) {
        let is_new = self.followed.generation != self.gateway.routes_generation();
        if is_new && !self.monitor.is_dumping() {
            for family in Family::ALL {
                if let Some(spread) = self.note_spread(family) {
                    self.order(Order::Follow(family, spread));
                }
            }
        }
    }

    /// The same at the start, before the first packet arrives.
    pub(super) fn follow_first(&mut self, steering: &mut Steering) {
        for family in Family::ALL {
            let spread = self.note_spread(family).unwrap_or_default();
            if let Err(error) = steering.follow(family, &spread) {
                tell_not_followed(&error);
            }
        }
    }

    /// The update that the kernel needs now; none if it is up to date.
    fn note_spread(&mut self, family: Family) -> Option<Spread> {
        self.followed.generation = self.gateway.routes_generation();
        let spread = self.gateway.spread(family);
        let known = &mut self.followed.spread[family as usize];
        if *known == spread {
            return None;
        }
        for route in &spread.left_out {
            if !known.left_out.contains(route) {
                log::error!(
                    "next hops not followed route={route} why=\"too many longer prefixes within it\" \
                     effect=\"flows that the kernel sends out of another port than the gateway has chosen are \
                     dropped\""
                );
            }
        }
        known.clone_from(&spread);
        Some(spread)
    }
}

/// The kernel has refused what makes it follow.
pub(super) fn tell_not_followed(error: &NetlinkError) {
    log::error!(
        "next hops not followed error={} effect=\"flows that the kernel sends out of another port than the gateway \
         has chosen are dropped\"",
        InQuotes(error)
    );
}
