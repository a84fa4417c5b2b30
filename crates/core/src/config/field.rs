//! Options as values: how the row of an option reads and writes its field of the config.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::options::{OPTIONS, OptionDoc};
use super::value::show_duration;
use super::{
    Group, Ha, Limits, LinkMonitor, Metrics, MssClamp, Node, PickupGuarantee, Port, PortOffload,
    Timeouts, VirtualAddress, Weight, Witness,
};
use crate::flow::PortId;

/// The value of an option.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Left out: the default, which is computed where it is used.
    Absent,
    /// `true` or `false`.
    Bool(bool),
    /// Within the range of its [`super::OptionKind::Integer`].
    Integer(u64),
    /// Within the range of its [`super::OptionKind::Duration`].
    Duration(Duration),
    /// One of the words of a [`super::OptionKind::Choice`].
    Word(&'static str),
    /// `mss-clamp`.
    MssClamp(MssClamp),
    /// A name, path or socket address.
    Text(String),
    /// Ports of the config that holds the value.
    Ports(Vec<PortId>),
    /// Names of nodes.
    Names(Vec<String>),
    /// Addresses with networks and groups.
    Addresses(Vec<VirtualAddress>),
}

impl Value {
    /// As it stands in the file, without quotes; lists are not spelled out.
    pub fn show(&self) -> String {
        match self {
            Value::Absent => "the default".to_owned(),
            Value::Bool(value) => value.to_string(),
            Value::Integer(value) => value.to_string(),
            Value::Duration(value) => show_duration(*value),
            Value::Word(word) => (*word).to_owned(),
            Value::MssClamp(MssClamp::Auto) => "auto".to_owned(),
            Value::MssClamp(MssClamp::To(size)) => size.to_string(),
            Value::Text(text) => text.clone(),
            Value::Ports(ports) => format!("{} ports", ports.len()),
            Value::Names(names) if names.is_empty() => "none".to_owned(),
            Value::Names(names) => names.join(", "),
            Value::Addresses(addresses) => format!("{} addresses", addresses.len()),
        }
    }

    /// Describes a change from this value to another one.
    pub(super) fn to(&self, new: &Value) -> String {
        match self {
            Value::Ports(_) | Value::Addresses(_) => "changed".to_owned(),
            old => format!("{} to {}", old.show(), new.show()),
        }
    }
}

/// The field of `T` that an option is kept in.
#[derive(Clone, Debug)]
pub(super) struct Field<T> {
    pub get: fn(&T) -> Value,
    /// Values of another type have no effect: the row's kind says which one it is.
    pub set: fn(&mut T, Value),
}

/// Where the value of an option is kept.
#[derive(Clone, Debug)]
pub(super) enum Access {
    Node(Field<Node>),
    Port(Field<Port>),
    Group(Field<Group>),
    LinkMonitor(Field<LinkMonitor>),
    Timeouts(Field<Timeouts>),
    Limits(Field<Limits>),
    Metrics(Field<Metrics>),
    Ha(Field<Ha>),
    Witness(Field<Witness>),
    /// Part of tables that are compared and replaced as a whole, such as policies, or the key that
    /// identifies its table: the name of a port.
    Whole,
}

/// A struct of the config with fields for options.
pub(super) trait Owner: Sized + 'static {
    /// The field, if the option is one of this struct.
    fn field(option: &OptionDoc) -> Option<&Field<Self>>;

    /// The options of this struct, in order.
    fn options() -> impl Iterator<Item = (&'static OptionDoc, &'static Field<Self>)> {
        OPTIONS
            .iter()
            .filter_map(|option| Some((option, Self::field(option)?)))
    }
}

macro_rules! owners {
    ($($owner:ident),*) => {
        $(impl Owner for $owner {
            fn field(option: &OptionDoc) -> Option<&Field<$owner>> {
                match &option.access {
                    Access::$owner(field) => Some(field),
                    _ => None,
                }
            }
        })*
    };
}

owners!(
    Node,
    Port,
    Group,
    LinkMonitor,
    Timeouts,
    Limits,
    Metrics,
    Ha,
    Witness
);

/// The access to a field, as in `field!(Timeouts.udp)`.
macro_rules! field {
    ($owner:ident . $($name:ident).+) => {
        $crate::config::field::Access::$owner($crate::config::field::Field {
            get: |part| $crate::config::field::Stored::value(&part.$($name).+),
            set: |part, value| {
                if let Some(value) = $crate::config::field::Stored::stored(value) {
                    part.$($name).+ = value;
                }
            },
        })
    };
}
pub(super) use field;

/// A type of a field that keeps an option.
pub(super) trait Stored: Sized {
    fn value(&self) -> Value;

    /// `None` if the value is of another type.
    fn stored(value: Value) -> Option<Self>;
}

macro_rules! stored {
    ($($stored:ty: $value:ident => $show:expr, $read:expr;)*) => {
        $(impl Stored for $stored {
            fn value(&self) -> Value {
                let show: fn(&$stored) -> _ = $show;
                Value::$value(show(self))
            }

            fn stored(value: Value) -> Option<$stored> {
                let read: fn(_) -> Option<$stored> = $read;
                match value {
                    Value::$value(value) => read(value),
                    _ => None,
                }
            }
        })*
    };
}

stored! {
    bool: Bool => |value| *value, Some;
    u8: Integer => |value| u64::from(*value), |value| u8::try_from(value).ok();
    u32: Integer => |value| u64::from(*value), |value| u32::try_from(value).ok();
    Duration: Duration => |value| *value, Some;
    MssClamp: MssClamp => |value| *value, Some;
    PortOffload: Word => |value| value.word(), PortOffload::of_word;
    PickupGuarantee: Word => |value| value.word(), PickupGuarantee::of_word;
    String: Text => String::clone, Some;
    PathBuf: Text => |value| value.display().to_string(), |value: String| Some(value.into());
    SocketAddr: Text => SocketAddr::to_string, |value: String| value.parse().ok();
    Vec<PortId>: Ports => Vec::clone, Some;
    Vec<String>: Names => Vec::clone, Some;
    Vec<Weight>: Names => |value| value.iter().map(Weight::to_string).collect(), |value: Vec<String>| Weight::all(&value);
}

impl<T: Stored> Stored for Option<T> {
    fn value(&self) -> Value {
        self.as_ref().map_or(Value::Absent, Stored::value)
    }

    fn stored(value: Value) -> Option<Option<T>> {
        match value {
            Value::Absent => Some(None),
            value => T::stored(value).map(Some),
        }
    }
}
