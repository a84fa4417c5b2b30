//! Single keys of `[ha]` that are changed while the gateway runs.

use toml::de::DeTable;

use super::change::Show;
use super::diagnostic::Report;
use super::names::did_you_mean;
use super::options::{self, Kind};
use super::policy::guarantee;
use super::reader::Table;
use super::{Config, Ha, PickupGuarantee};

/// The keys of `[ha]` that [`set_switch`] changes.
pub const SWITCHES: [&str; 6] = [
    "session-pickup",
    "session-pickup-connectionless",
    "session-pickup-delay",
    "pickup-guarantee",
    "priority",
    "override",
];

/// `[ha]` with another value of one key.
#[derive(Clone, Debug, PartialEq)]
pub struct Switched {
    /// All of `[ha]`.
    pub ha: Ha,
    /// The value before, as in the file but without quotes.
    pub old: String,
    /// The value now, likewise.
    pub new: String,
    /// The value now, as TOML.
    pub toml: String,
}

/// Sets `key` of `[ha]` to `value`, which is written as in the file but without quotes.
///
/// # Errors
/// One sentence that says what is wrong, and what was probably meant.
pub fn set_switch(running: &Config, key: &str, value: &str) -> Result<Switched, String> {
    let Some(key) = SWITCHES.into_iter().find(|known| *known == key) else {
        return Err(unknown(key));
    };
    let Some(ha) = &running.ha else {
        return Err("this gateway is standalone: it has no [ha]".to_owned());
    };
    if key == "priority" && running.groups.iter().all(|group| group.priority.is_some()) {
        return Err("each [[group]] has a priority of its own: \
             change it there, and reload"
            .to_owned());
    }
    let Some(option) = options::find("ha", key) else {
        return Err(unknown(key));
    };
    let unreadable = || format!("`{key}` can't be `{value}`: it is {}", option.kind_text());
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '+');
    if value.is_empty() || !value.chars().all(plain) {
        return Err(unreadable());
    }
    let toml = match option.kind {
        Kind::Bool | Kind::Integer { .. } => value.to_owned(),
        _ => format!("{value:?}"),
    };
    let text = format!("{key} = {toml}");
    let document = DeTable::parse(&text).map_err(|_| unreadable())?;
    let report = Report::default();
    let mut table = Table::of("ha", document.get_ref(), &report);
    let mut changed = ha.clone();
    let (old, new) = apply(&mut table, &mut changed, key);
    if let Some(problem) = report.into_sorted().into_iter().next() {
        let hint = problem.hint.map(|hint| format!("; {hint}"));
        let said = problem.message + &hint.unwrap_or_default();
        return Err(format!("`{key}` can't be `{value}`: {said}"));
    }
    Ok(Switched {
        ha: changed,
        old,
        new,
        toml,
    })
}

/// The value of each switch in force, as in the file but without quotes; none without `[ha]`.
pub fn switches(running: &Config) -> Option<[(&'static str, String); SWITCHES.len()]> {
    let ha = running.ha.as_ref()?;
    Some(SWITCHES.map(|key| (key, value_of(ha, key))))
}

fn value_of(ha: &Ha, key: &str) -> String {
    match key {
        "session-pickup" => ha.session_pickup.show(),
        "session-pickup-connectionless" => ha.session_pickup_connectionless.show(),
        "session-pickup-delay" => ha.session_pickup_delay.show(),
        "pickup-guarantee" => ha.pickup_guarantee.show(),
        "priority" => ha.priority.show(),
        _ => ha.override_.show(),
    }
}

/// Reads one key into `ha`; gives the value before and after.
fn apply(table: &mut Table<'_>, ha: &mut Ha, key: &str) -> (String, String) {
    fn set<T: Show>(place: &mut T, value: T) -> (String, String) {
        (place.show(), {
            *place = value;
            place.show()
        })
    }
    match key {
        "session-pickup" => set(&mut ha.session_pickup, table.flag("session-pickup")),
        "session-pickup-connectionless" => set(
            &mut ha.session_pickup_connectionless,
            table.flag("session-pickup-connectionless"),
        ),
        "session-pickup-delay" => set(
            &mut ha.session_pickup_delay,
            table.duration("session-pickup-delay"),
        ),
        "pickup-guarantee" => {
            let word = table.choice("pickup-guarantee");
            let value = word.as_ref().map_or(PickupGuarantee::Off, guarantee);
            set(&mut ha.pickup_guarantee, value)
        }
        "priority" => {
            let value = u8::try_from(table.integer("priority")).unwrap_or(u8::MAX);
            set(&mut ha.priority, value)
        }
        _ => set(&mut ha.override_, table.flag("override")),
    }
}

fn unknown(key: &str) -> String {
    if options::find("ha", key).is_some() {
        return format!(
            "`{key}` is no switch: change it in the config file, then reload or restart"
        );
    }
    let hint = did_you_mean(key, SWITCHES.into_iter())
        .unwrap_or_else(|| format!("the switches are {}", SWITCHES.join(", ")));
    format!("there is no switch `{key}`; {hint}")
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
            ("frobnicate", "1", "the switches are session-pickup,"),
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
            let error = set_switch(&before, key, value).unwrap_err();
            assert!(
                error.contains(said) && !error.contains('\n') || value.contains('\n'),
                "{error}"
            );
        }
        let alone = Config { ha: None, ..before };
        assert!(
            set_switch(&alone, "override", "true")
                .unwrap_err()
                .contains("standalone")
        );
    }

    #[test]
    fn a_priority_that_no_group_takes_is_refused() {
        let mut before = running();
        before
            .groups
            .iter_mut()
            .for_each(|group| group.priority = Some(7));
        let error = set_switch(&before, "priority", "9").unwrap_err();
        assert!(error.contains("[[group]]"), "{error}");
    }
}
