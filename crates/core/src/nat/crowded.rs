//! Remembers where no port was found, and how far the search went, so that the next one continues
//! there, or does not begin at all.

use std::hash::{Hash, Hasher};

use siphasher::sip::SipHasher13;

use super::range::Range;
use crate::flow::{Addr, FlowKey, Protocol};
use crate::session::TranslatedAddr;

/// The scope of a port: an external address, and the destination that tells sessions apart (TCP);
/// mappings take a port whatever the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Scope {
    external: TranslatedAddr,
    protocol: Protocol,
    destination: Option<(Addr, u16)>,
    range: Range,
}

impl Scope {
    /// The scope in which a session with `key` takes a port of `external` out of `range`. `key` is
    /// that after destination translation.
    pub(super) fn new(external: TranslatedAddr, key: &FlowKey, range: Range) -> Scope {
        let mut scope = Scope::of_mappings(external, key.protocol, range);
        if !super::is_mapped(key.protocol) {
            scope.destination = Some((key.dst, key.dst_port));
        }
        scope
    }

    /// The scope of the mappings of `protocol`.
    pub(super) fn of_mappings(external: TranslatedAddr, protocol: Protocol, range: Range) -> Scope {
        Scope {
            external,
            protocol,
            destination: None,
            range,
        }
    }
}

/// How far the search for a port has come in a scope.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// The port at which the next search continues.
    pub(super) next: u16,
    /// Ports that were found taken one after the other, before `next`.
    pub(super) seen: u32,
}

/// Remembers a bounded number of crowded scopes; a newer one replaces one with the same hash.
///
/// A forgotten scope costs a search. A remembered one is true until a port becomes free, and then
/// [`Crowded::freed`] is called.
pub(super) struct Crowded {
    places: Vec<Place>,
    /// Nothing was noted yet, which is usual.
    is_empty: bool,
    hasher: SipHasher13,
}

#[derive(Clone, Copy, Default)]
struct Place {
    /// 0 in an unused entry.
    tag: u32,
    progress: Progress,
}

const PLACES: usize = 4096;

impl Crowded {
    /// Nothing is crowded. `key` is random and secret, so that nobody can target an entry.
    pub(super) fn new(key: &[u8; 16]) -> Crowded {
        Crowded {
            places: vec![Place::default(); PLACES],
            is_empty: true,
            hasher: SipHasher13::new_with_key(key),
        }
    }

    /// How far the search in a scope has come; none if it has not failed since a port became free.
    pub(super) fn progress(&self, scope: &Scope) -> Option<Progress> {
        if self.is_empty {
            return None;
        }
        let (place, tag) = self.find(scope);
        let place = self.places[place];
        (place.tag == tag).then_some(place.progress)
    }

    /// Notes the progress of a search that found nothing.
    pub(super) fn note(&mut self, scope: &Scope, progress: Progress) {
        let (place, tag) = self.find(scope);
        self.places[place] = Place { tag, progress };
        self.is_empty = false;
    }

    /// Notes that `port` is free again: the next search begins with it.
    pub(super) fn freed(&mut self, scope: &Scope, port: u16) {
        if self.is_empty {
            return;
        }
        let (place, tag) = self.find(scope);
        if self.places[place].tag == tag {
            let progress = Progress {
                next: port,
                seen: 0,
            };
            self.places[place].progress = progress;
        }
    }

    /// Forgets everything: after a change of the pools.
    pub(super) fn clear(&mut self) {
        self.places.fill(Place::default());
        self.is_empty = true;
    }

    fn find(&self, scope: &Scope) -> (usize, u32) {
        let mut hasher = self.hasher;
        scope.hash(&mut hasher);
        let hash = hasher.finish();
        (hash as usize % PLACES, (hash >> 32) as u32 | 1)
    }
}
