//! A value of a log line that may contain blanks: quoted, so that programs find its end.

use std::fmt::{self, Display, Write};

/// Shows the value in double quotes; quotes and backslashes in it are escaped with a backslash. The
/// logger handles newlines and other characters that would break the line.
pub struct InQuotes<T>(pub T);

impl<T: Display> Display for InQuotes<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        write!(Escaped(f), "{}", self.0)?;
        f.write_char('"')
    }
}

struct Escaped<'a, 'b>(&'a mut fmt::Formatter<'b>);

impl Write for Escaped<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            if matches!(c, '"' | '\\') {
                self.0.write_char('\\')?;
            }
            self.0.write_char(c)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_value_can_be_found() {
        let shown = |text: &str| InQuotes(text).to_string();
        assert_eq!(shown("a b é"), "\"a b é\"");
        assert_eq!(shown(r#"a" b="c\"#), r#""a\" b=\"c\\""#);
    }
}
