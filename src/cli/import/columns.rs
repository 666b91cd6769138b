//! The columns of a CSV input: which of [`COLUMNS`] each of them is, if any.

use anyhow::bail;

use super::csv_options::{Condition, CsvOptions, Values, column_of, folded};
use super::rows::Shape;

/// All columns. An input may have them in any order.
pub(super) const COLUMNS: [&str; 26] = [
    "user_id",
    "business_id",
    "event_time",
    "event",
    "category",
    "scope",
    "method",
    "statement",
    "business_name",
    "locale",
    "reference",
    "confirmation",
    "expire_time",
    "pending",
    "message_id",
    "text",
    "marketing_stopped",
    "code",
    "suppressed",
    "other_user_id",
    "moved",
    "template_name",
    "template_language",
    "restricted",
    "until_time",
    "phone_number_id",
];

/// The values of the column `event`, which are the contract's names, and the columns that each
/// uses.
pub(super) const EVENTS: [(&str, &[&str]); 9] = [
    (
        "opt_in",
        &[
            "category",
            "method",
            "statement",
            "business_name",
            "locale",
            "reference",
            "confirmation",
            "expire_time",
            "pending",
            "phone_number_id",
        ],
    ),
    ("opt_out", &["scope", "reference"]),
    ("inbound_message", &["message_id", "text"]),
    ("platform_preference", &["marketing_stopped", "phone_number_id"]),
    ("delivery_failure", &["code", "phone_number_id"]),
    ("suppression", &["suppressed", "reference"]),
    ("link", &["other_user_id", "moved"]),
    ("template_category", &["template_name", "template_language", "category", "reference"]),
    ("template_restriction", &["restricted", "until_time", "reference"]),
];

/// What the columns of a list of templates may be called, and which of [`COLUMNS`] they are.
const OF_TEMPLATES: [(&str, &str); 3] =
    [("name", "template_name"), ("language", "template_language"), ("time", "event_time")];

/// The columns of an input.
#[derive(Debug)]
pub(super) struct Columns {
    /// What the header calls each; a number where it does not.
    names: Vec<String>,
    /// Those of [`COLUMNS`] that the input has, in their order, each with its place in a row.
    known: Vec<(&'static str, usize)>,
    /// Columns without a name, which must be empty.
    unnamed: Vec<usize>,
    conditions: Vec<(usize, Condition)>,
    pub(super) shape: Shape,
}

/// What a column of an input is.
#[derive(Clone, Copy)]
enum Meaning {
    /// One of [`COLUMNS`].
    Known(&'static str),
    /// Left out by a flag.
    LeftOut,
    Unnamed,
    Unknown,
}

impl Columns {
    /// The columns of a header, or with `--no-header` of the first row.
    pub(super) fn new(
        header: &[String],
        options: &CsvOptions,
        delimiter: u8,
    ) -> anyhow::Result<Self> {
        let meanings =
            if options.no_header { by_place(header, options)? } else { by_name(header, options)? };
        let named = meanings.iter().rposition(|meaning| !matches!(meaning, Meaning::Unnamed));
        let mut columns = Self {
            names: names(header, options),
            known: Vec::new(),
            unnamed: Vec::new(),
            conditions: Vec::new(),
            shape: Shape {
                delimiter,
                named: named.map_or(0, |last| last + 1),
                width: meanings.len(),
            },
        };
        let mut unknown = Vec::new();
        for (place, meaning) in meanings.into_iter().enumerate() {
            match meaning {
                Meaning::Known(column) if columns.index(column).is_some() => {
                    bail!("the column {column} is there twice: `--columns NAME=-` leaves one out")
                }
                Meaning::Known(column) => columns.known.push((column, place)),
                Meaning::Unnamed if place < columns.shape.named => unknown.push(place),
                Meaning::Unnamed => columns.unnamed.push(place),
                Meaning::Unknown => unknown.push(place),
                Meaning::LeftOut => {}
            }
        }
        let in_order = |name: &str| COLUMNS.iter().position(|column| *column == name);
        columns.known.sort_by_key(|(name, _)| in_order(name));
        if options.ignore_other_columns {
            columns.unnamed.clear();
        } else if !unknown.is_empty() {
            bail!(columns.unknown(&unknown, options.no_header));
        }
        for condition in &options.conditions {
            let place = columns.place(&condition.name, "--where")?;
            columns.conditions.push((place, condition.clone()));
        }
        Ok(columns)
    }

    /// Checks that the columns that each row needs are there, or have a value.
    pub(super) fn check(&self, values: &Values) -> anyhow::Result<()> {
        for (needed, or) in [
            ("user_id", ""),
            ("business_id", ", or give --business ID"),
            ("event", ", or give --event, such as opt_out"),
        ] {
            // A template takes the user's place.
            let is_replaced = needed == "user_id" && self.index("template_name").is_some();
            if self.index(needed).is_none() && values.of(needed).is_none() && !is_replaced {
                bail!(
                    "the column {needed} is missing: say with --columns NAME={needed} which one it \
                     is{or}; the first line must name the columns, and {} are known",
                    COLUMNS.join(", ")
                );
            }
        }
        Ok(())
    }

    /// What is said of columns that are none of [`COLUMNS`].
    fn unknown(&self, unknown: &[usize], has_no_header: bool) -> String {
        let name = |place: &usize| match self.names.get(*place) {
            Some(name) if name.parse::<usize>().is_err() && !is_like_id(name) => {
                format!("`{name}`")
            }
            _ => format!("{} (without a name)", place + 1),
        };
        let names: Vec<_> = unknown.iter().map(name).collect();
        if has_no_header {
            return format!(
                "{} columns of the first line have no name in --columns: name them in their order, \
                 - for one that is left out, or give --ignore-other-columns",
                names.len()
            );
        }
        format!(
            "no column {} is known: --columns NAME=COLUMN says which one it is, \
             --ignore-other-columns leaves all others out; {} are known",
            names.join(", "),
            COLUMNS.join(", ")
        )
    }

    /// The place of a column by its name in the file.
    fn place(&self, name: &str, flag: &str) -> anyhow::Result<usize> {
        let mut places = (0..).zip(&self.names).filter(|(_, other)| folded(other) == folded(name));
        match (places.next(), places.next()) {
            (Some((place, _)), None) => Ok(place),
            (None, _) => {
                bail!("{flag}: the file has no column `{name}`: {}", self.names.join(", "))
            }
            _ => bail!("{flag}: the file has the column `{name}` twice"),
        }
    }

    /// Those of [`COLUMNS`] that the input has, in their order, each with its place in a row.
    pub(super) fn known(&self) -> &[(&'static str, usize)] {
        &self.known
    }

    /// The place of one of [`COLUMNS`] in a row.
    pub(super) fn index(&self, name: &str) -> Option<usize> {
        self.known.iter().find(|(known, _)| *known == name).map(|(_, place)| *place)
    }

    /// The name of the column at this place, for messages: that of [`COLUMNS`], if it is one of them.
    pub(super) fn name_at(&self, place: usize) -> String {
        let known = self.known.iter().find(|(_, other)| *other == place);
        let named = || self.names.get(place).cloned();
        known.map(|(name, _)| (*name).to_owned()).or_else(named).unwrap_or_default()
    }

    /// A column without a name that is not empty in this row.
    pub(super) fn unnamed_cell<'c>(&self, text: impl Fn(usize) -> &'c str) -> Option<usize> {
        self.unnamed.iter().copied().find(|place| !text(*place).trim().is_empty())
    }

    /// Whether a row meets the conditions of `--where`.
    pub(super) fn are_met<'c>(&self, text: impl Fn(usize) -> &'c str) -> bool {
        self.conditions.iter().all(|(place, condition)| {
            (folded(text(*place)) == condition.value) == condition.is_equal
        })
    }
}

/// What the columns are called, for messages.
fn names(header: &[String], options: &CsvOptions) -> Vec<String> {
    let name = |(place, cell): (usize, &String)| {
        let given = if options.no_header { options.columns.get(place) } else { Some(cell) };
        let given = given.map(|name| name.trim()).filter(|name| !name.is_empty());
        given.map_or_else(|| (place + 1).to_string(), str::to_owned)
    };
    header.iter().enumerate().map(name).collect()
}

/// What each column is by `--columns`, which names them in their order.
fn by_place(row: &[String], options: &CsvOptions) -> anyhow::Result<Vec<Meaning>> {
    let user_id = ["user_id".to_owned()];
    let names = if options.columns.is_empty() { &user_id[..] } else { &options.columns };
    if names.len() > row.len() {
        bail!("--columns names {} columns, and the first line has {}", names.len(), row.len());
    }
    let mut meanings = vec![Meaning::Unnamed; row.len()];
    for (meaning, name) in meanings.iter_mut().zip(names) {
        *meaning = match name.trim() {
            "-" | "" => Meaning::LeftOut,
            name => match column_of(name) {
                Some(column) => Meaning::Known(column),
                None => bail!("--columns: {name} is none of {}", COLUMNS.join(", ")),
            },
        };
    }
    // What has cells in the first line needs a name, or the flag.
    for (meaning, cell) in meanings.iter_mut().zip(row).skip(names.len()) {
        if !cell.trim().is_empty() {
            *meaning = Meaning::Unknown;
        }
    }
    Ok(meanings)
}

/// What each column is by its name in the header.
fn by_name(header: &[String], options: &CsvOptions) -> anyhow::Result<Vec<Meaning>> {
    let known = |cell: &str| {
        let called = OF_TEMPLATES.iter().find(|(called, _)| *called == folded(cell));
        let called = called.filter(|_| options.of_templates);
        column_of(called.map_or(cell, |(_, column)| column))
    };
    let by_own_name = |cell: &String| match (cell.trim(), known(cell)) {
        ("", _) => Meaning::Unnamed,
        (_, Some(column)) => Meaning::Known(column),
        (_, None) => Meaning::Unknown,
    };
    let mut meanings: Vec<_> = header.iter().map(by_own_name).collect();
    if !meanings.iter().any(|meaning| matches!(meaning, Meaning::Known(_)))
        && header.iter().any(|cell| is_like_id(cell))
    {
        bail!(
            "the first line looks like a row and not like a header: give --no-header, and with \
             --columns the names of its columns in their order"
        );
    }
    let has = |name: &str| header.iter().any(|cell| folded(cell) == folded(name));
    for given in joined_names(&options.columns, has) {
        let Some((name, column)) = given.rsplit_once('=') else {
            bail!("--columns: `{given}` must be NAME=COLUMN, such as 'Phone Number=user_id'");
        };
        let meaning = match (column.trim(), column_of(column)) {
            ("-", _) => Meaning::LeftOut,
            (_, Some(column)) => Meaning::Known(column),
            _ => bail!("--columns: {column} is none of {}", COLUMNS.join(", ")),
        };
        let same: Vec<_> = (0..header.len())
            .filter(|place| header.get(*place).is_some_and(|cell| folded(cell) == folded(name)))
            .collect();
        if same.is_empty() {
            bail!("--columns: the file has no column `{name}`: it has {}", header.join(", "));
        }
        if same.len() > 1 && !matches!(meaning, Meaning::LeftOut) {
            bail!("--columns: the file has the column `{name}` twice");
        }
        for place in same {
            if let Some(slot) = meanings.get_mut(place) {
                *slot = meaning;
            }
        }
    }
    Ok(meanings)
}

/// The parts of `--columns`, which the command line splits at every comma. Parts that together name a column of
/// the file with commas in its name, and say which one it is, are joined again.
fn joined_names(parts: &[String], has: impl Fn(&str) -> bool) -> Vec<String> {
    let is_whole = |part: &str| {
        let split = part.rsplit_once('=');
        split.is_some_and(|(name, column)| {
            has(name) && (column.trim() == "-" || column_of(column).is_some())
        })
    };
    let mut names = Vec::new();
    let mut rest = parts;
    while let Some((first, _)) = rest.split_first() {
        let joined = (1..=rest.len()).find_map(|count| {
            let joined = rest.get(..count)?.join(",");
            is_whole(&joined).then_some((joined, count))
        });
        // What is no column of the file is refused as it is.
        let (name, count) = joined.unwrap_or_else(|| (first.clone(), 1));
        names.push(name);
        rest = rest.get(count..).unwrap_or_default();
    }
    names
}

/// Whether this is a person's id and not the name of a column, so that no message may quote it.
fn is_like_id(cell: &str) -> bool {
    let digits = cell.chars().filter(|c| c.is_numeric()).count();
    digits >= 7 || cell.contains('@')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joined_names_keep_the_commas_of_a_header() {
        let has = |name: &str| matches!(name, "Date, created" | "a,b,c" | "Phone" | "a=1, b=2, c");
        for (parts, names) in [
            (
                "Phone=user_id,Date, created=event_time",
                &["Phone=user_id", "Date, created=event_time"][..],
            ),
            ("a,b,c=-,Phone=user_id", &["a,b,c=-", "Phone=user_id"]),
            ("a=1, b=2, c=user_id,Phone=-", &["a=1, b=2, c=user_id", "Phone=-"]),
            ("Phone=user_id,Date=event_time", &["Phone=user_id", "Date=event_time"]),
            ("Phone,Date=event_time", &["Phone", "Date=event_time"]),
            ("Phone", &["Phone"]),
        ] {
            let parts: Vec<_> = parts.split(',').map(str::to_owned).collect();
            assert_eq!(joined_names(&parts, has), names, "{parts:?}");
        }
    }

    #[test]
    fn import_page_lists_every_event_and_its_columns() {
        let page = include_str!("../../../docs/import-export.md");
        for (event, columns) in EVENTS {
            let columns: Vec<_> = columns.iter().map(|column| format!("`{column}`")).collect();
            let row = format!("| `{event}` | {} |", columns.join(", "));
            assert!(page.contains(&row), "{row}");
        }
        let used = EVENTS.iter().flat_map(|(_, columns)| *columns);
        let own = ["user_id", "business_id", "event_time", "event"];
        let all: std::collections::BTreeSet<_> = used.chain(&own).collect();
        assert_eq!(all, COLUMNS.iter().collect());
    }
}
