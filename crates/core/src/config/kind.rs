//! The types of options, with their ranges and defaults.

use std::time::Duration;

/// The type of an option, with its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptionKind {
    /// A string of the form described.
    Text(&'static str),
    /// An array of strings of the form described.
    List(&'static str),
    /// `true` or `false`.
    Bool,
    /// A whole number, written without a unit.
    Integer {
        /// The smallest that is accepted.
        min: u64,
        /// The largest that is accepted.
        max: u64,
    },
    /// A duration such as `"50ms"`.
    Duration {
        /// The shortest that is accepted.
        min: Duration,
        /// The longest that is accepted.
        max: Duration,
    },
    /// One of these words.
    Choice(&'static [&'static str]),
    /// `"auto"`, or a number of bytes.
    MssClamp,
    /// One of the words of [`super::PortOffload`], or `true` or `false`.
    Offload,
}

/// The value of an option that is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DefaultValue {
    /// It can't be left out.
    Required,
    /// The meaning of its absence.
    Absent(&'static str),
    /// For [`OptionKind::Bool`].
    Bool(bool),
    /// For [`OptionKind::Integer`].
    Integer(u64),
    /// For [`OptionKind::Duration`].
    Duration(Duration),
    /// For [`OptionKind::Text`], [`OptionKind::Choice`] and [`OptionKind::Offload`], as it would
    /// stand in the file.
    Text(&'static str),
}
