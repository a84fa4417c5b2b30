//! Keeps in place what leads packets to the gateway, and nothing past it.
//!
//! The monitor and the barrier's watch tell at once what somebody has changed. Of some parameters the
//! kernel does not tell: those of one port are read each [`AUDIT_INTERVAL`], in turn. Only read: what
//! changes routes or links waits for a lock that all namespaces of the machine share.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mio::Interest;

use tandemgw_core::control::BarrierView;
use tandemgw_core::flow::PortId;
use tandemgw_core::in_quotes::InQuotes;
use tandemgw_core::time::Time;

use super::super::barrier::BarrierWatch;
use super::super::config_terms::offloads;
use super::super::netlink::{KernelRoute, Rule};
use super::super::steering::{Disturbance, Restored, SetupError};
use super::super::tun::Tun;
use super::{Shell, Steering, tun_token};

/// One port is looked at so often.
const AUDIT_INTERVAL: Duration = Duration::from_millis(100);

/// Each so manieth time the barrier is looked at too.
const BARRIER_AUDITS: u32 = 10;

/// Whoever removes the same thing again so soon goes on until there is nothing left (`ip route flush`
/// does, for half a minute).
const FIGHT: Duration = Duration::from_millis(50);

/// And has to be given the time to finish.
const TRUCE: Duration = Duration::from_millis(20);

/// What is to be looked at, and when.
pub(super) struct Upkeep {
    /// None if the kernel has no packet filter.
    watch: Option<BarrierWatch>,
    /// The watch has something to tell.
    pub(super) barrier_ready: bool,
    /// The steering has something to repair.
    disturbed: bool,
    next_audit: Time,
    audits: u32,
    /// What was put back last of each port, and when.
    restored: BTreeMap<Option<PortId>, (Time, Vec<String>)>,
    /// Nothing is put back until then.
    truce: Option<Time>,
    /// Ports that could not be repaired: tried again at the next audit.
    failed: BTreeSet<PortId>,
}

impl Upkeep {
    /// Listens for changes of the barrier of the node of that name.
    pub(super) fn new(node: &str, now: Time) -> Upkeep {
        let watch = BarrierWatch::open(node);
        if let Err(error) = &watch {
            log::debug!("barrier not watched error={}", InQuotes(error));
        }
        Upkeep {
            watch: watch.ok(),
            barrier_ready: true,
            disturbed: false,
            next_audit: now + AUDIT_INTERVAL,
            audits: 0,
            restored: BTreeMap::new(),
            truce: None,
            failed: BTreeSet::new(),
        }
    }

    /// What the loop is to wait for.
    pub(super) fn watch(&self) -> Option<&BarrierWatch> {
        self.watch.as_ref()
    }

    pub(super) fn is_busy(&self) -> bool {
        (self.disturbed && self.truce.is_none()) || self.barrier_ready
    }

    /// When something is due.
    pub(super) fn timeout(&self) -> Time {
        self.truce
            .map_or(self.next_audit, |truce| truce.min(self.next_audit))
    }

    /// Notes what was put back. If it is what was put back just before, nothing is for a moment.
    fn note_restored(&mut self, now: Time, restored: Restored) {
        if restored.what.is_empty() {
            return;
        }
        let last = self.restored.get(&restored.port);
        let is_again = last.is_some_and(|(at, before)| {
            now.since(*at) < FIGHT && restored.what.iter().any(|what| before.contains(what))
        });
        if is_again {
            self.truce = Some(now + TRUCE);
        }
        self.restored.insert(restored.port, (now, restored.what));
    }
}

impl Shell {
    /// Repairs one thing, if one may be broken.
    pub(super) fn keep_up(&mut self, now: Time, steering: &mut Steering) {
        if std::mem::take(&mut self.upkeep.barrier_ready) {
            self.look_at_barrier(steering);
        }
        if now >= self.upkeep.next_audit {
            self.upkeep.next_audit = now + AUDIT_INTERVAL;
            self.audit(steering);
        }
        let truce = &mut self.upkeep.truce;
        truce.take_if(|until| *until <= now);
        if steering.is_disturbed() && truce.is_none() {
            match steering.repair_some() {
                Ok(restored) => {
                    self.tell_restored(&restored);
                    self.upkeep.note_restored(now, restored);
                }
                Err((Some(port), SetupError::NoTun(name))) => {
                    self.reopen_tun(port, &name, steering);
                }
                Err((port, error)) => {
                    self.upkeep.failed.extend(port);
                    log::error!(
                        "steering not repaired port={} error={}",
                        port.map_or("all", |port| self.gateway.port_name(port)),
                        InQuotes(&error)
                    );
                }
            }
        }
        self.upkeep.disturbed = steering.is_disturbed();
    }

    /// A route of somebody else in one of our tables may be better than ours.
    pub(super) fn refuse_route(&mut self, route: &KernelRoute, steering: &mut Steering) {
        match steering.remove_foreign(route) {
            Ok(()) => log::warn!(
                "route removed route={} why=\"the table is the gateway's\" remedy=\"put it into another table\"",
                InQuotes(route)
            ),
            Err(error) => log::error!("route not removed error={}", InQuotes(&error)),
        }
    }

    /// A rule of somebody else that the kernel asks first.
    pub(super) fn tell_rule(&self, rule: &Rule) {
        log::warn!(
            "rule before ours rule={} effect=\"packets that it matches don't reach the gateway, and are dropped\" \
             remedy=\"give it a priority number greater than routing-table, or set routing-table to less\"",
            InQuotes(rule)
        );
    }

    fn look_at_barrier(&mut self, steering: &mut Steering) {
        let Some(watch) = &mut self.upkeep.watch else {
            return;
        };
        let look = watch.look();
        self.upkeep.barrier_ready = look.more;
        if look.changed {
            self.repair_barrier(steering);
        }
    }

    fn audit(&mut self, steering: &mut Steering) {
        let audits = self.upkeep.audits;
        self.upkeep.audits = audits.wrapping_add(1);
        let ports = self.ports.len().max(1) as u32;
        for port in std::mem::take(&mut self.upkeep.failed) {
            steering.disturb(Disturbance::Port(port));
        }
        steering.audit(PortId((audits % ports) as u16));
        if audits.is_multiple_of(BARRIER_AUDITS) {
            self.repair_barrier(steering);
        }
    }

    fn repair_barrier(&mut self, steering: &mut Steering) {
        if let Some(wrong) = steering.repair_barrier() {
            log::warn!("barrier restored was={}", InQuotes(&wrong));
        }
        let (before, stopped) = (self.view.barrier.stopped, steering.stopped());
        if let Some(more) = stopped.checked_sub(before).filter(|more| *more > 0) {
            log::warn!(
                "packets stopped count={more} by=barrier why=\"they would have gone past the gateway\" \
                 remedy=\"tandemgw doctor\""
            );
        }
        self.view.barrier = BarrierView {
            why_not: steering.barrier_fault().map(str::to_owned),
            stopped,
        };
    }

    fn tell_restored(&self, restored: &Restored) {
        if restored.what.is_empty() {
            return;
        }
        let port = restored
            .port
            .map_or("all", |port| self.gateway.port_name(port));
        let what = restored.what.join(", ");
        if restored.is_expected {
            log::info!("steering restored port={port} what={}", InQuotes(&what));
        } else {
            log::warn!(
                "steering restored port={port} what={} why=\"somebody else removed or changed it\"",
                InQuotes(&what)
            );
        }
    }

    /// Makes a TUN device again that somebody has deleted, or moved to another namespace.
    fn reopen_tun(&mut self, port: PortId, name: &str, steering: &mut Steering) {
        let settings = &self.gateway.config().ports[port.index()];
        let opened = Tun::open(name, offloads(settings)).and_then(|mut tun| {
            let token = tun_token(port.index());
            self.poll
                .registry()
                .register(&mut tun, token, Interest::READABLE)?;
            Ok(tun)
        });
        let index = |netlink: &mut super::Netlink| Ok(netlink.link(name)?.map(|link| link.index));
        let made = opened.and_then(|tun| match index(&mut self.netlink) {
            Ok(Some(index)) => Ok((tun, index)),
            Ok(None) => Err(std::io::ErrorKind::NotFound.into()),
            Err::<_, super::super::netlink::NetlinkError>(error) => {
                Err(std::io::Error::other(error))
            }
        });
        match made {
            Ok((tun, index)) => {
                log::warn!(
                    "tun made again port={} device={name} why=\"somebody else removed it\"",
                    settings.name
                );
                self.view.ports[port.index()].offload = tun.offload();
                self.ports[port.index()].tun = tun;
                self.ready.tuns.insert(port.index());
                steering.replace_tun(port, index);
            }
            Err(error) => {
                self.upkeep.failed.insert(port);
                log::error!(
                    "tun not made port={} device={name} error={}",
                    settings.name,
                    InQuotes(&error)
                );
            }
        }
    }
}
