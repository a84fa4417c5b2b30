//! Programs as filters of tc(8), for kernels that have no other place for them (before Linux 6.6).

use std::os::fd::{AsRawFd, OwnedFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcAttribute, TcBpfFlags, TcFilterBpfOption, TcHandle, TcMessage, TcOption,
};

use super::{Netlink, NetlinkError};

const PLACE: &str = "clsact";
/// The number by which ours is known among the filters of an interface; they see a packet in its
/// order.
const PRIORITY: u32 = 7700;
const NAME: &str = "tandemgw";

impl Netlink {
    /// Makes a program the filter of what comes in by an interface, in place of one that a process
    /// has left there. The filter stays when the process ends. The result is whether the place for
    /// filters (`clsact`) was made for it.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn add_program(&mut self, link: u32, program: &OwnedFd) -> Result<bool, NetlinkError> {
        let object = format!("of interface #{link}");
        let place = RouteNetlinkMessage::NewQueueDiscipline(place(link));
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        let made = match self.change("make the place for filters", &object, place, flags) {
            Ok(()) => true,
            Err(error) if error.is(libc::EEXIST) => false,
            Err(error) => return Err(error),
        };
        let mut message = filter(link);
        // A descriptor is never negative.
        let options = [
            TcFilterBpfOption::ProgFd(program.as_raw_fd() as u32),
            TcFilterBpfOption::ProgName(NAME.to_owned()),
            TcFilterBpfOption::Flags(TcBpfFlags::DirectAction),
        ];
        let options = options.into_iter().map(TcOption::Bpf).collect();
        message.attributes.push(TcAttribute::Options(options));
        let request = RouteNetlinkMessage::NewTrafficFilter(message);
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        let added = self.change("add the filter", &object, request, flags);
        if added.is_err() {
            let _ = self.remove_program(link, made);
        }
        added.map(|()| made)
    }

    /// Removes what [`Netlink::add_program`] has added, and the place for filters if it `made` that
    /// and nobody else has a filter there.
    ///
    /// # Errors
    /// What the kernel refuses; not if it is gone already.
    pub fn remove_program(&mut self, link: u32, made: bool) -> Result<(), NetlinkError> {
        let object = format!("of interface #{link}");
        let gone = [libc::ENOENT, libc::ENODEV, libc::EINVAL];
        let request = RouteNetlinkMessage::DelTrafficFilter(filter(link));
        self.remove("remove the filter", &object, request, &gone)?;
        if !made || self.has_filters(link)? {
            return Ok(());
        }
        let request = RouteNetlinkMessage::DelQueueDiscipline(place(link));
        self.remove("remove the place for filters", &object, request, &gone)
    }

    /// Whether what comes in by an interface has our program as a filter, and whether it has
    /// others; with `both`, also what leaves by it.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn has_filters_of(&mut self, link: u32, both: bool) -> Result<(bool, bool), NetlinkError> {
        let mut found = self.filters(link, TcHandle::MIN_INGRESS)?;
        if both {
            found.extend(self.filters(link, TcHandle::MIN_EGRESS)?);
        }
        let is_ours = |priority: &u32| *priority == PRIORITY;
        Ok((found.iter().any(is_ours), !found.iter().all(is_ours)))
    }

    fn has_filters(&mut self, link: u32) -> Result<bool, NetlinkError> {
        let inward = self.filters(link, TcHandle::MIN_INGRESS)?;
        Ok(!inward.is_empty() || !self.filters(link, TcHandle::MIN_EGRESS)?.is_empty())
    }

    /// The priorities of the filters at a place.
    fn filters(&mut self, link: u32, hook: u16) -> Result<Vec<u32>, NetlinkError> {
        let mut message = TcMessage::default();
        (message.header.index, message.header.parent) = (link.cast_signed(), parent(hook));
        let request = RouteNetlinkMessage::GetTrafficFilter(message);
        self.dump("filters", &request, |message| match message {
            RouteNetlinkMessage::NewTrafficFilter(filter) => Some(filter.header.info >> 16),
            _ => None,
        })
    }
}

fn parent(hook: u16) -> TcHandle {
    TcHandle {
        major: u16::MAX,
        minor: hook,
    }
}

fn place(link: u32) -> TcMessage {
    let mut message = TcMessage::default();
    message.header.index = link.cast_signed();
    message.header.handle = parent(0);
    message.header.parent = TcHandle::CLSACT;
    let kind = TcAttribute::Kind(PLACE.to_owned());
    message.attributes.push(kind);
    message
}

fn filter(link: u32) -> TcMessage {
    let all = u32::from((libc::ETH_P_ALL as u16).to_be());
    let mut message = TcMessage::default();
    message.header.index = link.cast_signed();
    message.header.handle = TcHandle { major: 0, minor: 1 };
    message.header.parent = parent(TcHandle::MIN_INGRESS);
    message.header.info = PRIORITY << 16 | all;
    let kind = TcAttribute::Kind("bpf".to_owned());
    message.attributes.push(kind);
    message
}
