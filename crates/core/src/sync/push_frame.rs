//! A message about configs as the body of a frame.

use super::codec::{Malformed, begin_frame};
use crate::push::message::Message;

/// Reads the body of a frame.
pub(super) fn read(body: &[u8]) -> Result<Message, Malformed> {
    Message::decode(body).map_err(|_| Malformed)
}

/// Writes a frame, all but its length.
pub(super) fn write(out: &mut Vec<u8>, message: &Message) {
    begin_frame(out, 17);
    out.extend_from_slice(&message.encode());
}
