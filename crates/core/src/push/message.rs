//! What units tell each other about configs, as bytes: the body of a frame of the replication
//! stream.
//!
//! `kind: u8 | fields`, numbers in network order; a text is `length: u16 | UTF-8`. Bytes after the
//! known fields, and unknown kinds, are skipped: they come from a newer version.

/// Bytes that are not a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

type Result<T> = std::result::Result<T, Malformed>;

/// The checksum of a config's text.
pub type Sum = [u8; 16];

/// Differences that an answer tells at most.
pub const MOST_CHANGES: usize = 100;

/// The longest text in a message, in bytes.
const LONGEST: usize = 256;

/// A message between two units.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// 1, `generation: u64 | sum: 16 bytes | changed: u8 (0, 1)`: what the sender has.
    State(Held),
    /// 2, `id: u64 | generation: u64 | length: u32 | returning: u8 (0, 1)`: a config for the
    /// receiver, whose text follows.
    Offer(Offer),
    /// 3, `id: u64 | bytes`: the next bytes of the text.
    Part {
        /// Of the offer.
        id: u64,
        /// Some of the text.
        bytes: Vec<u8>,
    },
    /// 4, `id: u64 | why: text | more: u32 | count: u16 | count × (key: text | what: text |
    /// restart: u8)`: what the config would change on the sender.
    Answer {
        /// Of the offer.
        id: u64,
        /// What the sender thinks of it.
        verdict: Verdict,
    },
    /// 5, `id: u64 | seconds: u32`: put it in force, and go back unless it is confirmed in time.
    Apply {
        /// Of the offer.
        id: u64,
        /// The time for the confirmation.
        seconds: u32,
    },
    /// 6, `id: u64 | why: text`: it is in force, or (with a reason) it is not.
    Applied {
        /// Of the offer.
        id: u64,
        /// Why it is not in force; empty if it is.
        why: String,
    },
    /// 7, `id: u64`: it stays.
    Confirm {
        /// Of the offer.
        id: u64,
    },
    /// 8, `id: u64 | why: text`: it is in the file, or (with a reason) it is not.
    Committed {
        /// Of the offer.
        id: u64,
        /// Why it is not in the file; empty if it is.
        why: String,
    },
    /// 9, `id: u64 | why: text`: go back to the config before, and forget this one.
    Abort {
        /// Of the offer.
        id: u64,
        /// The reason.
        why: String,
    },
    /// Of a newer version.
    Unknown,
}

/// The config that a unit has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// How many configs were pushed until that one; 0: none.
    pub generation: u64,
    /// The checksum of what is in force.
    pub sum: Sum,
    /// It was changed on the unit itself since.
    pub is_changed: bool,
}

/// A config that a unit offers to another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// A random number, by which all further messages name it.
    pub id: u64,
    /// The generation that it makes.
    pub generation: u64,
    /// The length of its text, in bytes.
    pub length: u32,
    /// The receiver was away when it was pushed: no operator looks at the answer.
    pub is_returning: bool,
}

/// What a unit thinks of a config.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Why it can't have it; none if it can.
    pub why_not: Option<String>,
    /// What would change.
    pub changes: Vec<Changed>,
    /// How many more differences there are.
    pub more: u32,
}

/// A difference between two configs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    /// The key, or the table with its name.
    pub key: String,
    /// The difference.
    pub what: String,
    /// It waits for a restart.
    pub needs_restart: bool,
}

impl Message {
    /// The bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Message::State(held) => {
                out.push(1);
                out.extend(held.generation.to_be_bytes());
                out.extend(held.sum);
                out.push(u8::from(held.is_changed));
            }
            Message::Offer(offer) => {
                begin(&mut out, 2, offer.id);
                out.extend(offer.generation.to_be_bytes());
                out.extend(offer.length.to_be_bytes());
                out.push(u8::from(offer.is_returning));
            }
            Message::Part { id, bytes } => {
                begin(&mut out, 3, *id);
                out.extend(bytes);
            }
            Message::Answer { id, verdict } => {
                begin(&mut out, 4, *id);
                write_verdict(&mut out, verdict);
            }
            Message::Apply { id, seconds } => {
                begin(&mut out, 5, *id);
                out.extend(seconds.to_be_bytes());
            }
            Message::Applied { id, why } => with_text(&mut out, 6, *id, why),
            Message::Confirm { id } => begin(&mut out, 7, *id),
            Message::Committed { id, why } => with_text(&mut out, 8, *id, why),
            Message::Abort { id, why } => with_text(&mut out, 9, *id, why),
            Message::Unknown => out.push(0),
        }
        out
    }

    /// Reads the bytes of a message.
    ///
    /// # Errors
    /// If they are none.
    pub fn decode(bytes: &[u8]) -> Result<Message> {
        let mut from = Reader(bytes);
        Ok(match from.u8()? {
            1 => Message::State(Held {
                generation: from.u64()?,
                sum: from.array()?,
                is_changed: from.u8()? != 0,
            }),
            2 => Message::Offer(Offer {
                id: from.u64()?,
                generation: from.u64()?,
                length: from.u32()?,
                is_returning: from.u8()? != 0,
            }),
            3 => Message::Part {
                id: from.u64()?,
                bytes: from.0.to_vec(),
            },
            4 => Message::Answer {
                id: from.u64()?,
                verdict: from.verdict()?,
            },
            5 => Message::Apply {
                id: from.u64()?,
                seconds: from.u32()?,
            },
            6 => Message::Applied {
                id: from.u64()?,
                why: from.text()?,
            },
            7 => Message::Confirm { id: from.u64()? },
            8 => Message::Committed {
                id: from.u64()?,
                why: from.text()?,
            },
            9 => Message::Abort {
                id: from.u64()?,
                why: from.text()?,
            },
            _ => Message::Unknown,
        })
    }
}

fn begin(out: &mut Vec<u8>, kind: u8, id: u64) {
    out.push(kind);
    out.extend(id.to_be_bytes());
}

fn with_text(out: &mut Vec<u8>, kind: u8, id: u64, text: &str) {
    begin(out, kind, id);
    write_text(out, text);
}

fn write_text(out: &mut Vec<u8>, text: &str) {
    let text = cut(text, LONGEST);
    out.extend((text.len() as u16).to_be_bytes());
    out.extend(text.as_bytes());
}

/// The beginning of a text, of `most` bytes at most.
pub fn cut(text: &str, most: usize) -> &str {
    let end = most.min(text.len());
    let end = (0..=end).rev().find(|at| text.is_char_boundary(*at));
    &text[..end.unwrap_or(0)]
}

fn write_verdict(out: &mut Vec<u8>, verdict: &Verdict) {
    write_text(out, verdict.why_not.as_deref().unwrap_or_default());
    let told = &verdict.changes[..verdict.changes.len().min(MOST_CHANGES)];
    let untold = (verdict.changes.len() - told.len()) as u32;
    out.extend(verdict.more.saturating_add(untold).to_be_bytes());
    out.extend((told.len() as u16).to_be_bytes());
    for changed in told {
        write_text(out, &changed.key);
        write_text(out, &changed.what);
        out.push(u8::from(changed.needs_restart));
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk().ok_or(Malformed)?;
        self.0 = rest;
        Ok(*array)
    }

    fn u8(&mut self) -> Result<u8> {
        Ok(u8::from_be_bytes(self.array()?))
    }

    fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    fn text(&mut self) -> Result<String> {
        let length = usize::from(self.u16()?);
        let (text, rest) = self.0.split_at_checked(length).ok_or(Malformed)?;
        self.0 = rest;
        String::from_utf8(text.to_vec()).map_err(|_| Malformed)
    }

    fn verdict(&mut self) -> Result<Verdict> {
        let why_not = Some(self.text()?).filter(|why| !why.is_empty());
        let more = self.u32()?;
        let count = usize::from(self.u16()?);
        if count > MOST_CHANGES {
            return Err(Malformed);
        }
        let mut changes = Vec::new();
        for _ in 0..count {
            changes.push(Changed {
                key: self.text()?,
                what: self.text()?,
                needs_restart: self.u8()? != 0,
            });
        }
        Ok(Verdict {
            why_not,
            changes,
            more,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text() -> impl Strategy<Value = String> {
        "[a-zä\"\n]{0,40}"
    }

    fn messages() -> impl Strategy<Value = Message> {
        let held = (any::<u64>(), any::<Sum>(), any::<bool>());
        let offer = (any::<u64>(), any::<u64>(), any::<u32>(), any::<bool>());
        let changed = (text(), text(), any::<bool>());
        let changes = prop::collection::vec(changed, 0..5);
        let why = text().prop_map(|why| Some(why).filter(|why| !why.is_empty()));
        prop_oneof![
            held.prop_map(|(generation, sum, is_changed)| Message::State(Held {
                generation,
                sum,
                is_changed
            })),
            offer.prop_map(
                |(id, generation, length, is_returning)| Message::Offer(Offer {
                    id,
                    generation,
                    length,
                    is_returning
                })
            ),
            (any::<u64>(), any::<Vec<u8>>()).prop_map(|(id, bytes)| Message::Part { id, bytes }),
            (any::<u64>(), why, changes, any::<u32>()).prop_map(|(id, why_not, changes, more)| {
                let changes = changes
                    .into_iter()
                    .map(|(key, what, needs_restart)| Changed {
                        key,
                        what,
                        needs_restart,
                    });
                let verdict = Verdict {
                    why_not,
                    changes: changes.collect(),
                    more,
                };
                Message::Answer { id, verdict }
            }),
            (any::<u64>(), any::<u32>()).prop_map(|(id, seconds)| Message::Apply { id, seconds }),
            (any::<u64>(), text()).prop_map(|(id, why)| Message::Applied { id, why }),
            any::<u64>().prop_map(|id| Message::Confirm { id }),
            (any::<u64>(), text()).prop_map(|(id, why)| Message::Committed { id, why }),
            (any::<u64>(), text()).prop_map(|(id, why)| Message::Abort { id, why }),
        ]
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(message in messages()) {
            prop_assert_eq!(Message::decode(&message.encode()), Ok(message));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = Message::decode(&bytes);
        }
    }

    #[test]
    fn a_long_answer_is_cut_and_fits_a_frame() {
        let changed = Changed {
            key: "ä".repeat(1000),
            what: "x".repeat(1000),
            needs_restart: false,
        };
        let verdict = Verdict {
            why_not: None,
            changes: vec![changed; 500],
            more: 7,
        };
        let bytes = Message::Answer { id: 1, verdict }.encode();
        assert!(bytes.len() < 60 * 1024, "{}", bytes.len());
        let Ok(Message::Answer { verdict, .. }) = Message::decode(&bytes) else {
            panic!("no answer");
        };
        assert_eq!((verdict.changes.len(), verdict.more), (100, 407));
    }
}
