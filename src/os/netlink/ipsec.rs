//! Policies of IPsec (linux/xfrm.h).

use std::io;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_XFRM};

use super::wire::{Answer, Messages, receive};

/// `XFRM_MSG_GETPOLICY`.
const GET_POLICY: u16 = 0x15;

/// The length of `struct nlmsghdr` with `struct xfrm_userpolicy_id`.
const REQUEST: u32 = 16 + 64;

/// Whether there are any, in the network namespace of the calling thread.
///
/// # Errors
/// What the kernel says; it may have no IPsec.
pub fn has_ipsec_policies() -> io::Result<bool> {
    let mut socket = Socket::new(NETLINK_XFRM)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    // The kernel has answered when `send` returns.
    socket.set_non_blocking(true)?;
    let mut request = Vec::from(REQUEST.to_ne_bytes());
    request.extend(GET_POLICY.to_ne_bytes());
    request.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    request.resize(REQUEST as usize, 0);
    socket.send(&request, 0)?;
    let mut buffer = Vec::new();
    // One of the list is enough.
    receive(&socket, &mut buffer)?;
    match Messages::new(&buffer)
        .next()
        .map(|message| message.answer())
    {
        Some(Answer::Data(_)) => Ok(true),
        Some(Answer::Error(errno, _)) => Err(io::Error::from_raw_os_error(errno)),
        _ => Ok(false),
    }
}
