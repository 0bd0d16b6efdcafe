//! Reading a parsed TOML document key by key, so that every error can name the line.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::str::FromStr;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostic::Diagnostic;
use crate::units;

/// The file that is read.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) path: &'a Path,
    pub(super) text: &'a str,
}

impl Source<'_> {
    pub(super) fn error(self, span: Range<usize>, message: impl Into<String>) -> Diagnostic {
        Diagnostic::at(self.path, self.text, span, message)
    }
}

/// One key that a table may hold and what it sets.
pub(super) struct Key<T: 'static> {
    pub(super) name: &'static str,
    pub(super) set: fn(&mut T, &Field<'_>) -> Result<(), Diagnostic>,
}

/// Gives every key of `table`, in the order of the file, to its row of `keys`. `prefix` is the table's own name
/// with a point, for messages.
pub(super) fn fill<T>(
    source: Source<'_>,
    prefix: &str,
    table: &DeTable<'_>,
    keys: &[Key<T>],
    into: &mut T,
) -> Result<(), Diagnostic> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    for (key, value) in entries {
        let name = key.get_ref().as_ref();
        let Some(row) = keys.iter().find(|row| row.name == name) else {
            let names: Vec<_> = keys.iter().map(|row| row.name).collect();
            return Err(source
                .error(key.span(), format!("unknown key `{prefix}{}`", name.escape_debug()))
                .help(suggest(name, &names)));
        };
        (row.set)(into, &Field { source, name: format!("{prefix}{name}"), value })?;
    }
    Ok(())
}

/// "did you mean ...; possible are ...".
fn suggest(name: &str, names: &[&str]) -> String {
    let possible = format!("possible keys: {}", names.join(", "));
    let nearest = names
        .iter()
        .map(|candidate| (strsim::jaro_winkler(name, candidate), candidate))
        .max_by(|a, b| a.0.total_cmp(&b.0));
    match nearest {
        Some((likeness, nearest)) if likeness > 0.75 => format!("did you mean `{nearest}`? {possible}"),
        _ => possible,
    }
}

/// One key's value.
pub(super) struct Field<'a> {
    pub(super) source: Source<'a>,
    /// As spelled from the document's root: `pool.max`.
    pub(super) name: String,
    value: &'a Spanned<DeValue<'a>>,
}

impl<'a> Field<'a> {
    pub(super) fn error(&self, message: impl Into<String>) -> Diagnostic {
        self.source.error(self.value.span(), message)
    }

    fn wrong_type(&self, wanted: &str) -> Diagnostic {
        let found = type_name(self.value.get_ref());
        self.error(format!("`{}` must be {wanted}, not {found}", self.name))
    }

    fn element(&self, index: usize, value: &'a Spanned<DeValue<'a>>) -> Field<'a> {
        Field { source: self.source, name: format!("{}[{index}]", self.name), value }
    }

    pub(super) fn string(&self) -> Result<&'a str, Diagnostic> {
        match self.value.get_ref() {
            DeValue::String(text) => Ok(text),
            _ => Err(self.wrong_type("a string in quotes")),
        }
    }

    /// A string that `T` understands.
    pub(super) fn parsed<T: FromStr<Err: std::fmt::Display>>(&self) -> Result<T, Diagnostic> {
        self.string()?.parse().map_err(|e: T::Err| self.error(format!("`{}`: {e}", self.name)))
    }

    pub(super) fn boolean(&self) -> Result<bool, Diagnostic> {
        self.value.get_ref().as_bool().ok_or_else(|| self.wrong_type("true or false"))
    }

    pub(super) fn count(&self) -> Result<u32, Diagnostic> {
        let DeValue::Integer(number) = self.value.get_ref() else {
            return Err(self.wrong_type("a whole number"));
        };
        u32::from_str_radix(number.as_str(), number.radix()).map_err(|_| {
            self.error(format!("`{}` must be a whole number from 0 to {}, not {number}", self.name, u32::MAX))
        })
    }

    /// A whole number of bytes, or a string with a unit.
    pub(super) fn size(&self) -> Result<u64, Diagnostic> {
        let refuse = |reason: String| self.error(format!("`{}` is not a size", self.name)).help(reason);
        match self.value.get_ref() {
            DeValue::Integer(number) => u64::from_str_radix(number.as_str(), number.radix())
                .map_err(|_| refuse("write a number of bytes, or a string such as \"64MiB\"".into())),
            DeValue::String(text) => units::parse_size(text).map_err(|e| refuse(e.to_string())),
            _ => Err(self.wrong_type("a number of bytes or a string such as \"64MiB\"")),
        }
    }

    pub(super) fn duration(&self) -> Result<std::time::Duration, Diagnostic> {
        match self.value.get_ref() {
            DeValue::String(text) => units::parse_duration(text)
                .map_err(|e| self.error(format!("`{}` is not a duration", self.name)).help(e.to_string())),
            _ => Err(self.wrong_type("a duration with its unit, in quotes, such as \"5s\" or \"250ms\"")),
        }
    }

    pub(super) fn strings(&self) -> Result<Vec<String>, Diagnostic> {
        let DeValue::Array(array) = self.value.get_ref() else {
            return Err(self.wrong_type("a list of strings, such as [\"a\", \"b\"]"));
        };
        let element = |(i, value)| self.element(i, value).string().map(str::to_owned);
        array.iter().enumerate().map(element).collect()
    }

    pub(super) fn string_table(&self) -> Result<BTreeMap<String, String>, Diagnostic> {
        let table = self.table()?;
        let entry = |(key, value): (&'a Spanned<_>, &'a Spanned<DeValue<'a>>)| {
            let key: &std::borrow::Cow<'_, str> = key.get_ref();
            let name = format!("{}.{}", self.name, key.escape_debug());
            let text = Field { source: self.source, name, value }.string()?;
            Ok((key.clone().into_owned(), text.to_owned()))
        };
        table.iter().map(entry).collect()
    }

    pub(super) fn table(&self) -> Result<&'a DeTable<'a>, Diagnostic> {
        match self.value.get_ref() {
            DeValue::Table(table) => Ok(table),
            _ => Err(self.wrong_type("a table")),
        }
    }

    pub(super) fn tables(&self) -> Result<Vec<(Field<'a>, &'a DeTable<'a>)>, Diagnostic> {
        let DeValue::Array(array) = self.value.get_ref() else {
            return Err(self.wrong_type(&format!("a list of tables; write [[{}]]", self.name)));
        };
        let element = |(i, value)| {
            let field = self.element(i, value);
            let table = field.table()?;
            Ok((field, table))
        };
        array.iter().enumerate().map(element).collect()
    }
}

fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number with a point",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// Where `field` (`pool.max`, `share[0].target`, `env.PATH`) stands in the document: the value if it is there, else
/// the nearest table around it that is.
pub(super) fn locate(root: &DeTable<'_>, field: &str) -> Option<Range<usize>> {
    let (head, rest) = field.split_once('.').map_or((field, None), |(head, rest)| (head, Some(rest)));
    let (key, index) = match head.strip_suffix(']').and_then(|head| head.split_once('[')) {
        Some((key, index)) => (key, index.parse::<usize>().ok()),
        None => (head, None),
    };
    let mut value = root.get(key)?;
    if let (Some(index), DeValue::Array(array)) = (index, value.get_ref()) {
        value = array.get(index).unwrap_or(value);
    }
    // The rest is one key: names of environment variables may hold points.
    if let (Some(rest), DeValue::Table(table)) = (rest, value.get_ref()) {
        value = table.get(rest).unwrap_or(value);
    }
    Some(value.span())
}
