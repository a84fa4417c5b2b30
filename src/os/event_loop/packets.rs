//! Packets from the TUN devices through the gateway.
//!
//! While more comes by a TUN than the loop reads, datagrams come by a ring past its queue (`enter`
//! in `tun.bpf.c`). They stay in order: what is in the queue when the gate is opened is read before
//! the ring, and what comes to the queue after it was closed is read after what is in the ring.

use std::os::fd::AsRawFd;
use std::time::Duration;

use mio::Interest;
use mio::unix::SourceFd;

use tandemgw_core::event::{Offload, Verdict};
use tandemgw_core::flow::PortId;
use tandemgw_core::gateway::{Gateway, READ_AHEAD};
use tandemgw_core::in_quotes::InQuotes;
use tandemgw_core::time::Time;

use super::super::clock;
use super::super::fast_path::Gate;
use super::super::tun::Buffer;
use super::order::Order;
use super::{ARRIVALS, Shell};

/// Packets read from one TUN before the other sources get their turn: some 100 µs.
const PACKET_BUDGET: usize = 64;
/// The time after which reading from it stops in this turn, whatever the packets cost.
const PACKET_TIME: Duration = Duration::from_micros(250);
/// A packet longer than this is forwarded before the next one is read.
const LONG_PACKET: usize = 4096;
/// The next packets.
pub(super) struct Batch {
    buffers: [Buffer; READ_AHEAD],
    /// Where they come from; none if that port has got another TUN meanwhile.
    ports: [Option<PortId>; READ_AHEAD],
}

impl Default for Batch {
    fn default() -> Batch {
        Batch {
            buffers: std::array::from_fn(|_| Buffer::new()),
            ports: [None; READ_AHEAD],
        }
    }
}

/// The way past the queue of a port's TUN.
#[derive(Clone, Default)]
pub(super) struct Entrance {
    /// The number of the TUN device, if datagrams may pass its queue.
    tun: Option<u32>,
    /// The TUN has more than the loop reads in a turn.
    is_wanted: bool,
    order: Order,
    /// Packets that were read from the queue and must wait for those in the ring.
    held: Vec<(Vec<u8>, Offload)>,
}

impl Shell {
    /// From now on the loop is woken by what comes by the ring after a gate was closed.
    pub(super) fn register_arrivals(&mut self) {
        let registry = self.poll.registry();
        let Some(arrivals) = self.fast.arrivals() else {
            return;
        };
        let fd = arrivals.as_raw_fd();
        if let Err(error) = registry.register(&mut SourceFd(&fd), ARRIVALS, Interest::READABLE) {
            log::warn!(
                "no entrance of the fast path error={} effect=\"a flood of datagrams costs more\"",
                InQuotes(&error)
            );
            self.fast.lose_entrance();
        }
    }

    /// Whether datagrams may pass the queue of the TUN of a port.
    pub(super) fn allow_entrance(&mut self, index: usize, tun: Option<u32>) {
        // What they are like is up to the kernel, and they may leave by any port.
        let take_all = self.ports.iter().all(|port| port.tun.takes_unfinished());
        let tun = tun.filter(|_| take_all);
        if self.entrances[index].tun != tun {
            self.close_entrance(index);
            self.entrances[index].tun = tun;
        }
    }

    fn close_entrance(&mut self, index: usize) {
        let way = &mut self.entrances[index];
        if let (Some(tun), Some(arrivals)) = (way.tun, self.fast.arrivals())
            && way.order.is_open()
        {
            arrivals.close(tun);
            way.order.closed(arrivals.end());
        }
    }

    /// To be called before the loop waits: closes all gates if nothing is in the ring. Otherwise
    /// returns how long the loop may wait.
    pub(super) fn settle_arrivals(&mut self, now: Time) -> Option<Duration> {
        self.note_closed(now);
        if self.fast.arrivals().is_none_or(|it| it.is_empty()) {
            (0..self.entrances.len()).for_each(|index| self.close_entrance(index));
        }
        let arrivals = self.fast.arrivals().filter(|it| !it.is_empty())?;
        Some(match arrivals.is_complete() {
            true => Duration::ZERO,
            // Who copies it may have to wait for this CPU.
            false => Duration::from_millis(1),
        })
    }

    /// Reads packets of all ports, up to a budget of each.
    pub(super) fn read_all_packets(&mut self, now: Time) {
        self.note_closed(now);
        self.read_arrivals(now);
        let mut next = self.ready.tuns.next(0);
        while let Some(index) = next {
            self.read_packets(now, index);
            next = self.ready.tuns.next(index + 1);
        }
        for index in 0..self.entrances.len() {
            if std::mem::take(&mut self.entrances[index].is_wanted) {
                self.open_entrance(now, index);
            }
        }
    }

    /// The program closes a gate as soon as a packet takes the queue.
    fn note_closed(&mut self, now: Time) {
        let Some(arrivals) = self.fast.arrivals() else {
            return;
        };
        for way in &mut self.entrances {
            if way.order.is_open() {
                let gate = way.tun.map_or(Gate::Closed, |tun| arrivals.gate(tun));
                way.order.note(now, gate, arrivals.end());
            }
        }
    }

    fn open_entrance(&mut self, now: Time, index: usize) {
        let way = &mut self.entrances[index];
        if let (Some(tun), Some(arrivals)) = (way.tun, self.fast.arrivals())
            && way.order.may_open(now)
        {
            arrivals.open(tun);
            way.order.opened();
        }
    }

    /// Reads from the ring, unless older packets are in a queue.
    fn read_arrivals(&mut self, now: Time) {
        let is_empty = self.fast.arrivals().is_none_or(|it| it.is_empty());
        if is_empty || self.entrances.iter().any(|way| way.order.is_queue_older()) {
            return;
        }
        let began = clock::now();
        let mut left = PACKET_BUDGET;
        while left > 0 {
            let count = self.take_some(left.min(READ_AHEAD));
            left -= count;
            self.handle_some(now, count);
            if count == 0 || clock::now().since(began) >= PACKET_TIME {
                return;
            }
        }
    }

    /// Fills up to `most` of the buffers from the ring; returns how many.
    fn take_some(&mut self, most: usize) -> usize {
        let mut tuns = [0; READ_AHEAD];
        let Some(arrivals) = self.fast.arrivals() else {
            return 0;
        };
        let mut places = self.batch.buffers[..most].iter_mut().zip(&mut tuns);
        let mut count = 0;
        while let Some((buffer, tun)) = places.next()
            && arrivals.next(|arrival| {
                buffer.fill(arrival.packet, arrival.offload);
                *tun = arrival.tun;
            })
        {
            count += 1;
        }
        arrivals.release();
        let Batch { buffers, ports } = &mut self.batch;
        for ((buffer, port), tun) in buffers.iter().zip(ports).zip(&tuns[..count]) {
            *port = self.fast.port_of(*tun);
            if let Some(port) = *port {
                self.gateway.handle_batch(port, 1, buffer.packet().len());
            }
        }
        count
    }

    fn read_packets(&mut self, now: Time, index: usize) {
        let began = clock::now();
        let arrivals = self.fast.arrivals();
        let has_passed = |end| arrivals.is_none_or(|it| it.has_passed(end));
        let order = &mut self.entrances[index].order;
        let mut left = order.may_read(PACKET_BUDGET, has_passed);
        if left > 0 {
            self.handle_held(now, index);
        }
        while left > 0 && self.ready.tuns.contains(index) {
            let count = self.read_some(index, left.min(self.gateway.read_ahead()));
            left -= count.max(1);
            let buffers = self.batch.buffers[..count].iter();
            let bytes = buffers.map(|buffer| buffer.packet().len()).sum();
            self.gateway
                .handle_batch(PortId::from_index(index), count, bytes);
            if self.must_wait(now, index) {
                self.hold(index, count);
                break;
            }
            self.note_read(index, count);
            self.batch.ports[..count].fill(Some(PortId::from_index(index)));
            self.handle_some(now, count);
            if left.is_multiple_of(READ_AHEAD) && clock::now().since(began) >= PACKET_TIME {
                break;
            }
        }
        self.entrances[index].is_wanted = self.ready.tuns.contains(index);
    }

    /// Whether what was just read from the queue of a TUN may be newer than what is in the ring.
    fn must_wait(&mut self, now: Time, index: usize) -> bool {
        let way = &mut self.entrances[index];
        match (way.tun, self.fast.arrivals()) {
            (Some(tun), Some(arrivals)) if way.order.is_open() => {
                let gate = arrivals.gate(tun);
                way.order.must_wait(now, gate, arrivals.end())
            }
            _ => false,
        }
    }

    fn hold(&mut self, index: usize, count: usize) {
        let buffers = self.batch.buffers[..count].iter();
        let packets = buffers.map(|buffer| (buffer.packet().to_vec(), buffer.offload()));
        self.entrances[index].held.extend(packets);
        self.ready.tuns.insert(index);
    }

    fn handle_held(&mut self, now: Time, index: usize) {
        let held = std::mem::take(&mut self.entrances[index].held);
        for ((packet, offload), buffer) in held.iter().zip(&mut self.batch.buffers) {
            buffer.fill(packet, *offload);
        }
        self.batch.ports[..held.len()].fill(Some(PortId::from_index(index)));
        self.handle_some(now, held.len());
    }

    fn note_read(&mut self, index: usize, count: usize) {
        let is_empty = !self.ready.tuns.contains(index);
        let way = &mut self.entrances[index];
        if way.order.read(count, is_empty)
            && let (Some(tun), Some(arrivals)) = (way.tun, self.fast.arrivals())
        {
            arrivals.fully_open(tun);
        }
    }

    /// Passes on what was read.
    fn handle_some(&mut self, now: Time, count: usize) {
        // Chosen once a batch: a capture that is off costs a packet nothing.
        let handle = if self.gateway.is_capturing() {
            Gateway::handle_captured_packet
        } else {
            Gateway::handle_packet
        };
        let buffers = &mut self.batch.buffers[..count];
        let ports = &self.batch.ports[..count];
        if count > 1 {
            let packets = buffers.iter().map(|b| (b.packet(), b.offload()));
            self.gateway.announce_packets(packets);
        }
        for (buffer, port) in buffers.iter_mut().zip(ports) {
            let Some(port) = *port else { continue };
            let offload = buffer.offload();
            let verdict = handle(&mut self.gateway, now, port, buffer.packet_mut(), offload);
            if verdict != Verdict::Forward {
                continue;
            }
            let exit = &self.ports[self.gateway.exit().index()].tun;
            if exit.write(buffer).is_err() {
                self.gateway.handle_write_failure();
            }
        }
    }

    /// Fills up to `most` of the buffers from a TUN, until it is empty; returns how many.
    fn read_some(&mut self, index: usize, most: usize) -> usize {
        let tun = &mut self.ports[index].tun;
        for (count, buffer) in self.batch.buffers[..most].iter_mut().enumerate() {
            match tun.read(buffer) {
                // A second one as long would push it out of the cache before it is written.
                Ok(Some(length)) if length > LONG_PACKET => return count + 1,
                Ok(Some(_)) => {}
                Ok(None) => {
                    self.ready.tuns.remove(index);
                    return count;
                }
                Err(error) => {
                    let port = self.gateway.port_name(PortId::from_index(index));
                    log::error!("tun not read port={port} error={}", InQuotes(&error));
                    self.ready.tuns.remove(index);
                    return count;
                }
            }
        }
        most
    }
}
