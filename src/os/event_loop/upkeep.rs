//! Handles reports from the thread that keeps rules, routes and devices in place.

use std::io;

use mio::Interest;

use tandemgw_core::control::BarrierView;
use tandemgw_core::flow::PortId;
use tandemgw_core::in_quotes::InQuotes;
use tandemgw_core::time::Time;

use super::super::netlink::{KernelRoute, NetlinkError, Rule};
use super::super::steering::{Disturbance, Restored};
use super::super::tun::Tun;
use super::super::upkeep::{Order, Report, Upkeep};
use super::super::worker;
use super::{Shell, spread, tun_token};

/// Reports read in a turn: each may be a line of the log.
const REPORTS_AT_A_TIME: usize = 16;

impl Shell {
    /// Reads some of the thread's reports.
    ///
    /// # Errors
    /// If it has failed: removed items would no longer be restored.
    pub(super) fn read_reports(&mut self, now: Time) -> io::Result<()> {
        self.ready.reports = false;
        for _ in 0..REPORTS_AT_A_TIME {
            let Some(report) = self.upkeep.as_ref().map_or(Ok(None), Upkeep::next_report)? else {
                return Ok(());
            };
            self.handle_report(now, report);
        }
        self.ready.reports = true;
        Ok(())
    }

    fn handle_report(&mut self, now: Time, report: Report) {
        match report {
            Report::Detour(port, detour) => self.gateway.handle_detour(now, port, detour),
            Report::Restored(restored) => self.tell_restored(&restored),
            Report::NotRepaired(port, error) => log::error!(
                "steering not repaired port={} error={}",
                self.name_of(port),
                InQuotes(&error)
            ),
            Report::TunMade(port, tun, number) => self.take_tun(port, tun, number),
            Report::TunNotMade(port, error) => log::error!(
                "tun not made port={0} device=tgw-{0} error={1}",
                self.gateway.port_name(port),
                InQuotes(&error)
            ),
            Report::BarrierRestored(wrong) => {
                log::warn!("barrier restored was={}", InQuotes(&wrong));
            }
            Report::Barrier(view) => self.take_barrier(view),
            Report::ForeignRemoved(route, error) => tell_foreign(&route, error.as_ref()),
            Report::NotFollowed(error) => spread::tell_not_followed(&error),
            Report::Readdressed(warnings) => self.routes_followed(warnings),
            Report::FastPathBarred(barred) => self.bar_fast_path(barred),
            Report::SkipNothing(ports) => self.set_skip_nothing(ports),
            Report::FastProgramGone(interface) => self.lose_fast_program(interface),
            Report::NotJoined(warning) => {
                log::warn!("groups not joined why={}", InQuotes(&warning))
            }
        }
    }

    /// Orders memory for the next sessions, if there are many more than before.
    pub(super) fn reserve_memory(&mut self) {
        let most = self.gateway.most_sessions();
        if let Some(reserve) = self.reserve.as_mut().filter(|it| it.is_due(most)) {
            reserve.follow(most, self.gateway.reserved_memory());
        }
    }

    /// Has the thread do something.
    pub(super) fn order(&self, order: Order) {
        if let Some(upkeep) = &self.upkeep {
            upkeep.order(order);
        }
    }

    /// Has the thread check something that may be gone.
    pub(super) fn disturb(&self, disturbance: Disturbance) {
        self.order(Order::Disturb(disturbance));
    }

    /// Somebody else's rule that takes precedence.
    pub(super) fn tell_rule(&self, rule: &Rule) {
        log::warn!(
            "rule before ours rule={} effect=\"packets that it matches don't reach the gateway, and are dropped\" \
             remedy=\"give it a priority number greater than routing-table, or set routing-table to less\"",
            InQuotes(rule)
        );
    }

    fn take_barrier(&mut self, view: BarrierView) {
        let more = view.stopped.saturating_sub(self.view.barrier.stopped);
        if more > 0 {
            log::warn!(
                "packets stopped count={more} by=barrier why=\"they would have bypassed the gateway, or left by another port than their policy is for\" \
                 remedy=\"tandemgw doctor\""
            );
        }
        self.view.barrier = view;
    }

    fn name_of(&self, port: Option<PortId>) -> &str {
        port.map_or("all", |port| self.gateway.port_name(port))
    }

    fn tell_restored(&self, restored: &Restored) {
        let port = self.name_of(restored.port);
        let list = |what: &[String]| what.join(", ");
        if !restored.by_kernel.is_empty() {
            let what = list(&restored.by_kernel);
            log::info!("steering restored port={port} what={}", InQuotes(&what));
        }
        if !restored.what.is_empty() {
            let what = list(&restored.what);
            log::warn!(
                "steering restored port={port} what={} why=\"somebody else removed or changed it\"",
                InQuotes(&what)
            );
        }
    }

    /// Continues with a TUN device that replaces one that is gone.
    fn take_tun(&mut self, port: PortId, mut tun: Tun, number: u32) {
        let name = self.gateway.port_name(port);
        let token = tun_token(port.index());
        let registry = self.poll.registry();
        if let Err(error) = registry.register(&mut tun, token, Interest::READABLE) {
            log::error!("tun not read port={name} error={}", InQuotes(&error));
        }
        log::warn!("tun made again port={name} device=tgw-{name} why=\"somebody else removed it\"");
        self.view.ports[port.index()].offload = tun.offload();
        // Closing it waits for the same kernel lock as the thread does.
        let former = std::mem::replace(&mut self.ports[port.index()].tun, tun);
        worker::discard(&self.waker, former);
        self.ready.tuns.insert(port.index());
        self.note_fast_tun(port, number);
    }
}

/// Somebody else's route in one of our tables may take precedence over ours.
fn tell_foreign(route: &KernelRoute, error: Option<&NetlinkError>) {
    match error {
        None => log::warn!(
            "route removed route={} why=\"the table is the gateway's\" remedy=\"put it into another table\"",
            InQuotes(route)
        ),
        Some(error) => log::error!("route not removed error={}", InQuotes(error)),
    }
}
