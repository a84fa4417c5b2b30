//! How the packets of a port go on.

use toml::de::DeValue;

use super::value::{FromToml, ValueProblem, kind_of};

/// `offload` of a `[[port]]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PortOffload {
    /// `"plain"`, or `false`: each packet goes through the process alone, as it is on the wire.
    Plain,
    /// `"tun"`, or `true`: the kernel leaves super-packets and unfinished checksums to the process.
    Tun,
    /// `"ebpf"`: as `Tun`; and a program in the kernel forwards packets of established sessions.
    Ebpf,
    /// `"auto"`: as `Ebpf`, as long as nobody else filters or translates what that would skip.
    #[default]
    Auto,
}

impl PortOffload {
    const WORDS: [(&'static str, PortOffload); 4] = [
        ("auto", PortOffload::Auto),
        ("ebpf", PortOffload::Ebpf),
        ("tun", PortOffload::Tun),
        ("plain", PortOffload::Plain),
    ];

    /// The word in the file.
    pub fn word(self) -> &'static str {
        let found = Self::WORDS.iter().find(|(_, offload)| *offload == self);
        found.map_or("auto", |(word, _)| word)
    }

    pub(super) fn of_word(word: &str) -> Option<PortOffload> {
        let found = Self::WORDS.iter().find(|(known, _)| *known == word);
        found.map(|(_, offload)| *offload)
    }

    /// Whether the program in the kernel is wanted.
    pub fn wants_fast_path(self) -> bool {
        matches!(self, PortOffload::Ebpf | PortOffload::Auto)
    }
}

impl FromToml for PortOffload {
    fn from_toml(value: &DeValue<'_>) -> Result<PortOffload, ValueProblem> {
        const HINT: &str = "write \"auto\", \"ebpf\", \"tun\" or \"plain\"";
        match value {
            DeValue::Boolean(true) => Ok(PortOffload::Tun),
            DeValue::Boolean(false) => Ok(PortOffload::Plain),
            DeValue::String(text) => PortOffload::of_word(text)
                .ok_or_else(|| ValueProblem::new(format!("there is no offload `{text}`"), HINT)),
            other => {
                let message = format!("expected a string, found {}", kind_of(other));
                Err(ValueProblem::new(message, HINT))
            }
        }
    }
}
