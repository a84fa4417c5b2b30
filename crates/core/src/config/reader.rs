//! Reads the tables of a parsed TOML document; records each problem and continues.
//!
//! Types, ranges, defaults and the keys that exist come from [`super::options()`].

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostic::Report;
use super::field::{Field, Owner, Value};
use super::names::did_you_mean;
use super::options::{self, DefaultValue, OptionDoc, OptionKind};
use super::value::{FromToml, ValueProblem, kind_of, show_duration};
use super::{MssClamp, PortOffload};

/// A byte range of the file's text.
pub(super) type Span = Range<usize>;

/// A value and where it stands.
#[derive(Clone, Debug)]
pub(super) struct At<T> {
    pub value: T,
    pub span: Span,
}

/// A table of the document, of which keys are taken until [`Table::finish`].
pub(super) struct Table<'a> {
    /// Its path in the document, such as `ha.link`.
    name: &'static str,
    /// Where it begins.
    pub header: Span,
    left: BTreeMap<&'a str, (Span, &'a Spanned<DeValue<'a>>)>,
    pub report: &'a Report,
}

impl<'a> Table<'a> {
    /// The document itself.
    pub(super) fn root(document: &'a DeTable<'a>, report: &'a Report) -> Table<'a> {
        Table::of("", document, report)
    }

    /// A table of that path that is a document of its own.
    pub(super) fn of(name: &'static str, table: &'a DeTable<'a>, report: &'a Report) -> Table<'a> {
        Table::new(name, 0..0, table, report)
    }

    /// The subtable of that path; if there is none, an empty one, which yields the defaults.
    pub(super) fn table(&mut self, name: &'static str) -> Table<'a> {
        self.optional_table(name).unwrap_or(Table {
            name,
            header: self.header.clone(),
            left: BTreeMap::new(),
            report: self.report,
        })
    }

    /// As [`Table::table`], but `None` if there is none.
    pub(super) fn optional_table(&mut self, name: &'static str) -> Option<Table<'a>> {
        let value = self.value(last_segment(name))?;
        match value.get_ref() {
            DeValue::Table(table) => Some(Table::new(name, value.span(), table, self.report)),
            other => {
                let message = format!("expected a table, found {}", kind_of(other));
                let hint = format!("write `[{name}]`");
                self.report.error(&value.span(), message, hint);
                None
            }
        }
    }

    /// The array of subtables of that path, of which there may be at most `most`.
    pub(super) fn tables(&mut self, name: &'static str) -> Vec<Table<'a>> {
        let Some(value) = self.value(last_segment(name)) else {
            return Vec::new();
        };
        let wrong = |value: &Spanned<DeValue<'_>>| {
            let found = kind_of(value.get_ref());
            let message = format!("expected an array of tables, found {found}");
            let hint = format!("write `[[{name}]]`");
            self.report.error(&value.span(), message, hint);
        };
        let DeValue::Array(array) = value.get_ref() else {
            wrong(value);
            return Vec::new();
        };
        let most = options::most(name);
        if let Some(first) = array.get(most) {
            let message = format!("more than {most} `[[{name}]]`");
            self.report.error(&first.span(), message, "");
        }
        let mut tables = Vec::new();
        for value in array.iter().take(most) {
            match value.get_ref() {
                DeValue::Table(table) => {
                    tables.push(Table::new(name, value.span(), table, self.report));
                }
                _ => wrong(value),
            }
        }
        tables
    }

    /// The value of a key that may be left out, or its default if that is a text.
    pub(super) fn take<T: FromToml>(&mut self, key: &'static str) -> Option<At<T>> {
        let option = self.option(key);
        let Some(value) = self.value(key) else {
            let DefaultValue::Text(text) = option.default else {
                return None;
            };
            let default = DeValue::String(text.into());
            return self.decode(&Spanned::new(self.header.clone(), default));
        };
        self.decode(value)
    }

    /// The value of a required key. Records an error and returns `None` if it is missing.
    pub(super) fn require<T: FromToml>(&mut self, key: &'static str) -> Option<At<T>> {
        let option = self.option(key);
        let Some(value) = self.value(key) else {
            self.missing(option);
            return None;
        };
        self.decode(value)
    }

    /// The elements of a list that can be read; none if it is left out.
    pub(super) fn list<T: FromToml>(&mut self, key: &'static str) -> Vec<At<T>> {
        let values = self.elements(key);
        values
            .iter()
            .filter_map(|value| self.decode(value))
            .collect()
    }

    /// The elements of a list as they are written; none if it is left out.
    pub(super) fn elements(&mut self, key: &'static str) -> &'a [Spanned<DeValue<'a>>] {
        let option = self.option(key);
        let Some(value) = self.value(key) else {
            if option.default == DefaultValue::Required {
                self.missing(option);
            }
            return &[];
        };
        let DeValue::Array(array) = value.get_ref() else {
            let found = kind_of(value.get_ref());
            let hint = match value.get_ref() {
                DeValue::String(text) => format!("write [{text:?}]"),
                _ => String::new(),
            };
            let message = format!("expected an array, found {found}");
            self.report.error(&value.span(), message, hint);
            return &[];
        };
        array
    }

    /// As [`Table::list`], for a list of which the absence means "any": it must not be empty.
    pub(super) fn any_or_list<T: FromToml>(&mut self, key: &'static str) -> Vec<At<T>> {
        self.refuse_empty(key);
        self.list(key)
    }

    /// An error if a list of which the absence means "any" is there and empty.
    pub(super) fn refuse_empty(&self, key: &str) {
        if let Some((_, value)) = self.left.get(key)
            && matches!(value.get_ref(), DeValue::Array(array) if array.is_empty())
        {
            let hint = format!("leave `{key}` out to match any");
            let message = format!("`{key}` is empty");
            self.report.error(&value.span(), message, hint);
        }
    }

    /// Sets those fields of `part` that this table has a plain value for, or a default: those that
    /// can be understood without other parts of the config.
    pub(super) fn fill<T: Owner>(&mut self, part: &mut T) {
        for (option, field) in T::options() {
            self.fill_one(option, field, part);
        }
    }

    /// Sets the field of one option, if its value is a plain one.
    pub(super) fn fill_one<T>(
        &mut self,
        option: &'static OptionDoc,
        field: &Field<T>,
        part: &mut T,
    ) {
        let key = option.key;
        let is_left_out = !self.left.contains_key(key);
        let value = match option.kind {
            OptionKind::Text(_) | OptionKind::List(_) => return,
            _ if is_left_out && matches!(option.default, DefaultValue::Absent(_)) => Value::Absent,
            OptionKind::Bool => Value::Bool(self.flag(key)),
            OptionKind::Integer { .. } => Value::Integer(self.integer(key)),
            OptionKind::Duration { .. } => Value::Duration(self.duration(key)),
            OptionKind::Choice(_) => self
                .choice(key)
                .map_or(Value::Absent, |word| Value::Word(word.value)),
            OptionKind::MssClamp => self
                .take::<MssClamp>(key)
                .map_or(Value::Absent, |size| Value::MssClamp(size.value)),
            OptionKind::Offload => {
                let given = self.take::<PortOffload>(key).map(|offload| offload.value);
                Value::Word(given.unwrap_or_default().word())
            }
        };
        (field.set)(part, value);
    }

    /// Where the value of `key` stands, until it is taken.
    pub(super) fn span_of(&self, key: &str) -> Option<Span> {
        self.left.get(key).map(|(_, value)| value.span())
    }

    /// A boolean, or its default.
    pub(super) fn flag(&mut self, key: &'static str) -> bool {
        let default = self.option(key).default == DefaultValue::Bool(true);
        self.take(key).map_or(default, |at| at.value)
    }

    /// An integer within its range, or its default; the lowest one after an error.
    fn integer(&mut self, key: &'static str) -> u64 {
        let option = self.option(key);
        let OptionKind::Integer { min, max } = option.kind else {
            unreachable!("`{key}` is not an integer");
        };
        let given = match option.default {
            DefaultValue::Required => self.require::<i128>(key),
            _ => self.take::<i128>(key),
        };
        let Some(At { value, span }) = given else {
            return match option.default {
                DefaultValue::Integer(default) => default,
                _ => min,
            };
        };
        match u64::try_from(value) {
            Ok(value) if (min..=max).contains(&value) => value,
            _ => {
                let message = format!("`{key}` is {value}; it must be {min} to {max}");
                self.report.error(&span, message, "");
                min
            }
        }
    }

    /// A duration within its range, or its default; the shortest one after an error.
    fn duration(&mut self, key: &'static str) -> Duration {
        let option = self.option(key);
        let (OptionKind::Duration { min, max }, DefaultValue::Duration(default)) =
            (option.kind, option.default)
        else {
            unreachable!("`{key}` is not a duration");
        };
        match self.take::<Duration>(key) {
            None => default,
            Some(At { value, .. }) if (min..=max).contains(&value) => value,
            Some(At { value, span }) => {
                let [value, low, high] = [value, min, max].map(show_duration);
                let message = format!("`{key}` is {value}; it must be {low} to {high}");
                self.report.error(&span, message, "");
                min
            }
        }
    }

    /// One of a few words. `None` if it is left out or wrong; the latter is recorded.
    pub(super) fn choice(&mut self, key: &'static str) -> Option<At<&'static str>> {
        let option = self.option(key);
        let OptionKind::Choice(words) = option.kind else {
            unreachable!("`{key}` is not a choice");
        };
        let given = match option.default {
            DefaultValue::Required => self.require::<String>(key),
            _ => self.take::<String>(key),
        }?;
        if let Some(word) = words.iter().find(|word| **word == given.value) {
            return Some(At {
                value: word,
                span: given.span,
            });
        }
        let hint = did_you_mean(&given.value, words.iter().copied())
            .unwrap_or_else(|| format!("one of {}", words.join(", ")));
        let message = format!("unknown {key} `{}`", given.value);
        self.report.error(&given.span, message, hint);
        None
    }

    /// Reports the keys that nobody took.
    pub(super) fn finish(self) {
        for (key, (span, _)) in &self.left {
            let known: Vec<&str> = options::keys_of(self.name).collect();
            let hint = did_you_mean(key, known.iter().copied())
                .unwrap_or_else(|| format!("the keys here are {}", known.join(", ")));
            let message = match self.name {
                "" => format!("unknown key `{key}`"),
                name => format!("unknown key `{key}` in `{name}`"),
            };
            self.report.error(span, message, hint);
        }
    }

    fn new(
        name: &'static str,
        header: Span,
        table: &'a DeTable<'a>,
        report: &'a Report,
    ) -> Table<'a> {
        let entry = |(key, value): (&'a Spanned<_>, _)| {
            let text: &'a std::borrow::Cow<'_, str> = key.get_ref();
            (text.as_ref(), (key.span(), value))
        };
        Table {
            name,
            header,
            left: table.iter().map(entry).collect(),
            report,
        }
    }

    fn option(&self, key: &'static str) -> &'static OptionDoc {
        match options::find(self.name, key) {
            Some(option) => option,
            None => unreachable!("`{key}` of `{}` is not in the list of options", self.name),
        }
    }

    fn value(&mut self, key: &str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.left.remove(key).map(|(_, value)| value)
    }

    fn decode<T: FromToml>(&self, value: &Spanned<DeValue<'_>>) -> Option<At<T>> {
        self.decode_with_hint(value, None)
    }

    /// Reads a value; `hint` is a better one than that of its type.
    pub(super) fn decode_with_hint<T: FromToml>(
        &self,
        value: &Spanned<DeValue<'_>>,
        hint: Option<String>,
    ) -> Option<At<T>> {
        let span = value.span();
        match T::from_toml(value.get_ref()) {
            Ok(value) => Some(At { value, span }),
            Err(problem) => {
                let ValueProblem { message, .. } = problem;
                let hint = hint.unwrap_or(problem.hint);
                self.report.error(&span, message, hint);
                None
            }
        }
    }

    fn missing(&self, option: &OptionDoc) {
        let OptionDoc { key, meaning, .. } = option;
        let message = format!("`{key}` is missing in `{}`", self.name);
        let hint = format!("add `{key}`: {meaning} ({})", option.kind_text());
        self.report.error(&self.header, message, hint);
    }
}

fn last_segment(name: &'static str) -> &'static str {
    name.rsplit_once('.').map_or(name, |(_, last)| last)
}
