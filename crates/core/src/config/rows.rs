//! The cells of the rows in `options.rs`, by the kind of option.

use std::time::Duration;

use super::field::Access;
use super::kind::{DefaultValue, OptionKind};
use super::options::{OptionDoc, Reload};

pub(super) const fn option(
    table: &'static str,
    key: &'static str,
    kind: OptionKind,
    default: DefaultValue,
    access: Access,
    reload: Reload,
    meaning: &'static str,
) -> OptionDoc {
    OptionDoc {
        table,
        key,
        kind,
        default,
        reload,
        is_own: false,
        access,
        meaning,
    }
}

/// An option that is each unit's own.
pub(super) const fn own(row: OptionDoc) -> OptionDoc {
    OptionDoc {
        is_own: true,
        ..row
    }
}

pub(super) const fn text(
    table: &'static str,
    key: &'static str,
    form: &'static str,
    default: DefaultValue,
    access: Access,
    reload: Reload,
    meaning: &'static str,
) -> OptionDoc {
    option(
        table,
        key,
        OptionKind::Text(form),
        default,
        access,
        reload,
        meaning,
    )
}

pub(super) const fn list(
    table: &'static str,
    key: &'static str,
    form: &'static str,
    default: DefaultValue,
    access: Access,
    reload: Reload,
    meaning: &'static str,
) -> OptionDoc {
    option(
        table,
        key,
        OptionKind::List(form),
        default,
        access,
        reload,
        meaning,
    )
}

pub(super) const fn flag(
    table: &'static str,
    key: &'static str,
    default: bool,
    access: Access,
    reload: Reload,
    meaning: &'static str,
) -> OptionDoc {
    let default = DefaultValue::Bool(default);
    let kind = OptionKind::Bool;
    option(table, key, kind, default, access, reload, meaning)
}

#[expect(clippy::too_many_arguments, reason = "they are the cells of a row")]
pub(super) const fn int(
    table: &'static str,
    key: &'static str,
    min: u64,
    max: u64,
    default: u64,
    access: Access,
    reload: Reload,
    meaning: &'static str,
) -> OptionDoc {
    let default = DefaultValue::Integer(default);
    option(
        table,
        key,
        OptionKind::Integer { min, max },
        default,
        access,
        reload,
        meaning,
    )
}

#[expect(clippy::too_many_arguments, reason = "they are the cells of a row")]
pub(super) const fn time(
    table: &'static str,
    key: &'static str,
    min: Duration,
    max: Duration,
    default: Duration,
    access: Access,
    reload: Reload,
    meaning: &'static str,
) -> OptionDoc {
    let default = DefaultValue::Duration(default);
    option(
        table,
        key,
        OptionKind::Duration { min, max },
        default,
        access,
        reload,
        meaning,
    )
}

pub(super) const fn choice(
    table: &'static str,
    key: &'static str,
    words: &'static [&'static str],
    default: DefaultValue,
    access: Access,
    reload: Reload,
    meaning: &'static str,
) -> OptionDoc {
    option(
        table,
        key,
        OptionKind::Choice(words),
        default,
        access,
        reload,
        meaning,
    )
}
