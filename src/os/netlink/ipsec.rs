//! Policies of IPsec (linux/xfrm.h).

use std::io;
use std::ops::ControlFlow;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_XFRM};

use super::wire::{Answer, Messages, receive};

/// `XFRM_MSG_GETPOLICY`.
const GET_POLICY: u16 = 0x15;

/// The length of `struct nlmsghdr` with `struct xfrm_userpolicy_id`.
const REQUEST: u32 = 16 + 64;

/// In `struct xfrm_userpolicy_info`: which packets a policy is for, and what happens to them.
const DIRECTION: usize = 160;
const ACTION: usize = 161;
/// `XFRM_POLICY_IN`: what is for the machine itself.
const IN: u8 = 0;
/// `XFRM_POLICY_OUT` and `XFRM_POLICY_FWD`. Larger numbers are of single sockets.
const OUT: u8 = 1;
const FORWARD: u8 = 2;
/// `XFRM_POLICY_BLOCK`.
const BLOCK: u8 = 1;

/// Whether there are any policies, in the network namespace of the calling thread.
///
/// # Errors
/// What the kernel says; it may have no IPsec.
pub fn has_ipsec_policies() -> io::Result<bool> {
    let mut any = false;
    list(|_| {
        any = true;
        is_enough(any)
    })?;
    Ok(any)
}

/// Whether there are any for packets that are forwarded, in the network namespace of the calling
/// thread.
///
/// # Errors
/// What the kernel says; it may have no IPsec.
pub fn has_forwarding_ipsec_policies() -> io::Result<bool> {
    let mut any = false;
    list(|policy| {
        let direction = policy.get(DIRECTION);
        any |= direction.is_some_and(|direction| [OUT, FORWARD].contains(direction));
        is_enough(any)
    })?;
    Ok(any)
}

/// How many of them block packets that are forwarded.
///
/// # Errors
/// What the kernel says; it may have no IPsec.
pub fn blocking_ipsec_policies() -> io::Result<usize> {
    let mut count = 0;
    list(|policy| {
        let blocks = policy.get(ACTION) == Some(&BLOCK) && policy.get(DIRECTION) != Some(&IN);
        count += usize::from(blocks);
        ControlFlow::Continue(())
    })?;
    Ok(count)
}

fn is_enough(found: bool) -> ControlFlow<()> {
    match found {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    }
}

/// Passes the policies to `take`, until that has enough: there may be many thousands.
fn list(mut take: impl FnMut(&[u8]) -> ControlFlow<()>) -> io::Result<()> {
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
    loop {
        receive(&socket, &mut buffer)?;
        for message in Messages::new(&buffer) {
            match message.answer() {
                Answer::Data(policy) if take(policy).is_break() => return Ok(()),
                Answer::Data(_) => {}
                Answer::Done => return Ok(()),
                Answer::Error(errno, _) => return Err(io::Error::from_raw_os_error(errno)),
            }
        }
    }
}
