//! Single keys of `[ha]` that are changed while the gateway runs.

use std::fmt;

use toml::de::DeTable;

use super::diagnostic::Report;
use super::field::{Field, Owner};
use super::names::did_you_mean;
use super::options::{self, Live, OptionDoc, OptionKind, Reload};
use super::reader::Table;
use super::{Config, Ha};

/// A key of `[ha]` with another value.
#[derive(Clone, Debug, PartialEq)]
pub struct Switched {
    /// All of `[ha]`.
    pub ha: Ha,
    /// The settings to put in force.
    pub live: Live,
    /// The value before, as in the file but without quotes.
    pub old: String,
    /// The value now, likewise.
    pub new: String,
    /// The value now, as TOML.
    pub toml: String,
}

/// Why a switch is not set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SwitchError {
    /// There is no such key.
    Unknown {
        /// As it was typed.
        key: String,
        /// The nearest valid key.
        hint: String,
    },
    /// The key needs a restart, or has several values.
    NotASwitch(String),
    /// The gateway has no `[ha]`.
    Standalone,
    /// No group takes the priority of `[ha]`.
    GroupsHavePriorities,
    /// The value is not one of the key.
    Value {
        /// As the file spells it.
        key: &'static str,
        /// As it was typed.
        value: String,
        /// The mistake, and the nearest valid value.
        why: String,
    },
    /// A reload is being prepared on the config in force.
    ReloadUnderWay,
}

impl fmt::Display for SwitchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SwitchError::Unknown { key, hint } => write!(f, "there is no switch `{key}`; {hint}"),
            SwitchError::NotASwitch(key) => write!(
                f,
                "`{key}` can't be set on its own: change it in the config file, then reload or restart"
            ),
            SwitchError::Standalone => f.write_str("this gateway is standalone: it has no [ha]"),
            SwitchError::GroupsHavePriorities => {
                f.write_str("each [[group]] has a priority of its own: change it there, and reload")
            }
            SwitchError::Value { key, value, why } => {
                write!(f, "`{key}` can't be `{value}`: {why}")
            }
            SwitchError::ReloadUnderWay => {
                f.write_str("a reload is being prepared: try again in a moment")
            }
        }
    }
}

impl std::error::Error for SwitchError {}

/// A row of the options that is a switch.
struct Switch {
    option: &'static OptionDoc,
    field: &'static Field<Ha>,
    live: Live,
}

/// The switches: options of `[ha]` that need no restart and have a single value.
fn all() -> impl Iterator<Item = Switch> + Clone {
    options::OPTIONS.iter().filter_map(|option| {
        let field = Ha::field(option)?;
        match (option.kind, option.reload) {
            (OptionKind::Text(_) | OptionKind::List(_), _) => None,
            (_, Reload::Restart | Reload::AsUsed) => None,
            (_, Reload::Live(live)) => Some(Switch {
                option,
                field,
                live,
            }),
        }
    })
}

/// The keys that [`set_switch`] changes.
pub fn switch_names() -> impl Iterator<Item = &'static str> + Clone {
    all().map(|switch| switch.option.key)
}

/// Sets `key` of `[ha]` to `value`, which is written as in the file but without quotes.
///
/// # Errors
/// The mistake in the key or value, or the state of the config in force that forbids it.
pub fn set_switch(running: &Config, key: &str, value: &str) -> Result<Switched, SwitchError> {
    let Some(Switch {
        option,
        field,
        live,
    }) = all().find(|switch| switch.option.key == key)
    else {
        return Err(unknown(key));
    };
    let Some(ha) = &running.ha else {
        return Err(SwitchError::Standalone);
    };
    if live == Live::Priority
        && running
            .known_groups()
            .all(|(_, group)| group.priority.is_some())
    {
        return Err(SwitchError::GroupsHavePriorities);
    }
    let wrong = |why: String| SwitchError::Value {
        key: option.key,
        value: value.to_owned(),
        why,
    };
    let unreadable = || wrong(format!("it is {}", option.kind_text()));
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '+');
    if value.is_empty() || !value.chars().all(plain) {
        return Err(unreadable());
    }
    let toml = match option.kind {
        OptionKind::Bool | OptionKind::Integer { .. } => value.to_owned(),
        _ => format!("{value:?}"),
    };
    let text = format!("{key} = {toml}");
    let document = DeTable::parse(&text).map_err(|_| unreadable())?;
    let report = Report::default();
    let mut table = Table::of("ha", document.get_ref(), &report);
    let mut changed = ha.clone();
    table.fill_one(option, field, &mut changed);
    if let Some(problem) = report.into_sorted().into_iter().next() {
        let hint = problem.hint.map(|hint| format!("; {hint}"));
        return Err(wrong(problem.message + &hint.unwrap_or_default()));
    }
    Ok(Switched {
        old: (field.get)(ha).show(),
        new: (field.get)(&changed).show(),
        ha: changed,
        live,
        toml,
    })
}

/// The value of each switch in force, as in the file but without quotes; none without `[ha]`.
pub fn switches(running: &Config) -> Option<Vec<(&'static str, String)>> {
    let ha = running.ha.as_ref()?;
    let shown = |switch: Switch| (switch.option.key, (switch.field.get)(ha).show());
    Some(all().map(shown).collect())
}

fn unknown(key: &str) -> SwitchError {
    if options::find("ha", key).is_some() {
        return SwitchError::NotASwitch(key.to_owned());
    }
    let names: Vec<&str> = switch_names().collect();
    let hint = did_you_mean(key, names.iter().copied())
        .unwrap_or_else(|| format!("the switches are {}", names.join(", ")));
    SwitchError::Unknown {
        key: key.to_owned(),
        hint,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::options::tests::EVERYTHING;

    fn running() -> Config {
        crate::config::parse(Path::new("a.toml"), EVERYTHING)
            .unwrap()
            .0
    }

    #[test]
    fn the_value_of_a_switch_is_the_one_that_was_set() {
        for (key, value) in [
            ("session-pickup", "false"),
            ("session-pickup-connectionless", "true"),
            ("session-pickup-delay", "250ms"),
            ("pickup-guarantee", "strict"),
            ("priority", "200"),
            ("override", "false"),
        ] {
            let mut config = running();
            let before = switches(&config).unwrap();
            config.ha = Some(set_switch(&config, key, value).unwrap().ha);
            for ((name, now), (_, before)) in switches(&config).unwrap().iter().zip(&before) {
                match *name == key {
                    true => assert_eq!(now, value, "{key}"),
                    false => assert_eq!(now, before, "{key} changes nothing but itself"),
                }
            }
        }
    }

    #[test]
    fn each_switch_is_set_alone_and_shown_as_it_is_written() {
        let before = running();
        for (key, value, old, toml) in [
            ("session-pickup", "false", "true", "false"),
            ("session-pickup-connectionless", "true", "false", "true"),
            ("session-pickup-delay", "250ms", "1s", "\"250ms\""),
            ("pickup-guarantee", "strict", "off", "\"strict\""),
            ("priority", "200", "0", "200"),
            ("override", "false", "true", "false"),
        ] {
            let switched = set_switch(&before, key, value).unwrap();
            let shown = (
                switched.old.as_str(),
                switched.new.as_str(),
                switched.toml.as_str(),
            );
            assert_eq!(shown, (old, value, toml), "{key}");
            let after = Config {
                ha: Some(switched.ha.clone()),
                ..before.clone()
            };
            let change = crate::config::Change::new(&before, &after);
            let keys: Vec<_> = change.applied.iter().map(|d| d.key.clone()).collect();
            assert_eq!(keys, [format!("ha.{key}")]);
            assert!(change.waiting.is_empty());
        }
    }

    #[test]
    fn a_mistake_is_one_line_that_says_what_was_meant() {
        let before = running();
        for (key, value, said) in [
            ("priorty", "1", "did you mean `priority`?"),
            ("frobnicate", "1", "the switches are priority, override,"),
            ("heartbeat-interval", "1s", "change it in the config file"),
            ("priority", "300", "must be 0 to 255"),
            ("priority", "-1", "must be 0 to 255"),
            ("priority", "high", "integer, 0 to 255"),
            ("priority", "1.5", "expected an integer"),
            ("override", "yes", "true or false"),
            ("override", "true#", "true or false"),
            ("override", "true\npriority = 3", "true or false"),
            ("override", "", "true or false"),
            ("session-pickup-delay", "10", "a number and a unit"),
            ("session-pickup-delay", "2h", "must be 0s to 1h"),
            ("pickup-guarantee", "stict", "did you mean `strict`?"),
            ("pickup-guarantee", "\"off\"", "off | bounded | strict"),
        ] {
            let error = set_switch(&before, key, value).unwrap_err().to_string();
            assert!(
                error.contains(said) && !error.contains('\n') || value.contains('\n'),
                "{error}"
            );
        }
        let alone = Config { ha: None, ..before };
        assert!(set_switch(&alone, "override", "true") == Err(SwitchError::Standalone));
    }

    #[test]
    fn a_priority_that_no_group_takes_is_refused() {
        let mut before = running();
        before
            .groups
            .iter_mut()
            .for_each(|group| group.priority = Some(7));
        let error = set_switch(&before, "priority", "9").unwrap_err();
        assert_eq!(error, SwitchError::GroupsHavePriorities);
    }
}
