//! Colour on a terminal, unless `NO_COLOR` is set (no-color.org).

use std::io::{self, IsTerminal};

use ratatui::crossterm::style::{Attribute, Color, Colored, ContentStyle, Stylize};

/// Whether stdout takes colour.
pub fn is_wanted() -> bool {
    io::stdout().is_terminal() && !Colored::ansi_color_disabled()
}

/// How urgent a word is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// As it should be.
    Good,
    /// Worth a look.
    Warning,
    /// Not as it should be.
    Bad,
    /// A heading.
    Heading,
}

/// The text in the colour of its tone.
pub fn paint(text: &str, tone: Tone) -> String {
    let style = ContentStyle::new();
    let style = match tone {
        Tone::Good => style.with(Color::Green),
        Tone::Warning => style.with(Color::Yellow),
        Tone::Bad => style.with(Color::Red).attribute(Attribute::Bold),
        Tone::Heading => style.attribute(Attribute::Bold),
    };
    style.apply(text).to_string()
}
