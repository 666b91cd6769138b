//! The flags that say what a CSV file means: the names of its columns, what it lacks, how it writes
//! times and numbers.

use std::borrow::Cow;

use clap::Args;
use consentd_core::user_id::Region;

use super::columns::{COLUMNS, EVENTS};
use super::times::{TimeFormat, TimeZone};

#[derive(Args, Clone, Debug, Default)]
pub(super) struct CsvOptions {
    /// What separates the columns [default: what the header shows, or what its line sep= says]
    #[arg(long, value_name = "CHARACTER")]
    pub(super) delimiter: Option<char>,
    /// How the file's characters are encoded
    #[arg(long, value_enum, default_value_t)]
    pub(super) encoding: Encoding,
    /// Which column each column of the file is: 'Phone Number=user_id,Date=event_time'; NAME=- is left
    /// out. A NAME with commas is written as it is: 'Opted out, on=event_time'. With --no-header the
    /// names alone, in the file's order
    #[arg(long, value_name = "NAME=COLUMN,…", value_delimiter = ',')]
    pub(super) columns: Vec<String>,
    /// The file has no header: its first line is a row
    #[arg(long)]
    pub(super) no_header: bool,
    /// Leave columns out that have another name or none
    #[arg(long)]
    pub(super) ignore_other_columns: bool,
    /// Import only rows whose column of the file has this value (NAME=VALUE), or has another one
    /// (NAME!=VALUE); may be repeated
    #[arg(id = "where", long = "where", value_name = "NAME=VALUE", value_parser = Condition::parse)]
    pub(super) conditions: Vec<Condition>,
    /// What happened, where the file does not say so: opt_out
    #[arg(long, value_name = "EVENT", value_parser = EVENTS.map(|(event, _)| event))]
    pub(super) event: Option<String>,
    /// What opt-outs are of, where the file does not say so: '*' for everything
    #[arg(long)]
    pub(super) scope: Option<String>,
    /// The value of a column where the file has none: category=marketing; may be repeated
    #[arg(long, value_name = "COLUMN=VALUE", value_parser = parse_default)]
    pub(super) default: Vec<(&'static str, String)>,
    /// How times are written
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    pub(super) time_format: TimeFormat,
    /// The zone of times that have none: UTC, or an offset such as -06:00
    #[arg(long, value_name = "OFFSET", allow_hyphen_values = true)]
    pub(super) time_zone: Option<TimeZone>,
    /// Whether the file is a list of templates, whose columns have names of their own.
    #[arg(skip)]
    pub(super) of_templates: bool,
}

/// What an NDJSON file may lack, too.
#[derive(Args, Clone, Debug, Default)]
pub(super) struct Defaults {
    /// The business, where the file names none
    #[arg(long, value_name = "ID")]
    pub(super) business: Option<String>,
    /// The region whose numbers the file writes as they are dialled there, without country code: GB
    #[arg(long, value_name = "CODE", value_parser = parse_region)]
    pub(super) region: Option<Region>,
    /// Record opt-outs, stops and suppressions whose time is a null date or cannot be read as of now
    #[arg(long, value_name = "now", value_parser = ["now"])]
    pub(super) undated_opt_outs: Option<String>,
}

/// How the characters of a file are encoded.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, clap::ValueEnum)]
pub(super) enum Encoding {
    #[default]
    #[value(name = "utf-8")]
    Utf8,
    /// Western European, as Windows' programs save it
    #[value(name = "windows-1252")]
    Windows1252,
}

/// A condition of `--where`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Condition {
    /// The name of the file's column.
    pub(super) name: String,
    /// Whether the column must have the value, or must not.
    pub(super) is_equal: bool,
    /// The value, case-folded and trimmed.
    pub(super) value: String,
}

impl Condition {
    fn parse(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once('=').ok_or("must be NAME=VALUE or NAME!=VALUE")?;
        let unequal = name.strip_suffix('!');
        let name = unequal.unwrap_or(name).to_owned();
        Ok(Self { name, is_equal: unequal.is_none(), value: folded(value) })
    }
}

fn parse_region(code: &str) -> Result<Region, String> {
    Region::from_code(code).ok_or_else(|| {
        "must be a region's two letters (ISO 3166-1), such as GB for the United Kingdom".to_owned()
    })
}

fn parse_default(text: &str) -> Result<(&'static str, String), String> {
    let (column, value) = text.split_once('=').ok_or("must be COLUMN=VALUE")?;
    let unknown = || format!("{column} is none of {}", COLUMNS.join(", "));
    Ok((column_of(column).ok_or_else(unknown)?, value.to_owned()))
}

/// A name as names are compared: case-folded, without space around it.
pub(super) fn folded(name: &str) -> String {
    caseless::default_case_fold_str(name.trim())
}

/// The one of [`COLUMNS`] that has this name, as names are compared.
pub(super) fn column_of(name: &str) -> Option<&'static str> {
    let name = folded(name);
    COLUMNS.into_iter().find(|column| *column == name)
}

/// The values of those of [`COLUMNS`] that flags give one to, where the file has none. Of two values of a
/// column the first counts.
#[derive(Debug)]
pub(super) struct Values(Vec<(&'static str, String)>);

impl Values {
    /// The value of a column.
    pub(super) fn of(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(column, _)| *column == name).map(|(_, value)| value.as_str())
    }
}

impl CsvOptions {
    /// The values of columns where the file has none: those of flags of their own, and then the last of
    /// each `--default`.
    pub(super) fn values(&self, defaults: &Defaults) -> Values {
        let own =
            [("business_id", &defaults.business), ("event", &self.event), ("scope", &self.scope)];
        let own = own.into_iter().filter_map(|(column, value)| Some((column, value.clone()?)));
        Values(own.chain(self.default.iter().rev().cloned()).collect())
    }

    /// The first flag of those that are given and that only a CSV file has a use for.
    pub(super) fn given(&self) -> Option<&'static str> {
        self.flags().next().map(|(flag, _)| flag)
    }

    /// The flags that say what a row means, as an interrupted import keeps them: with others, its rows
    /// would mean something else. Empty if none is given.
    pub(super) fn meaning(&self, defaults: &Defaults) -> String {
        let flags: Vec<_> = self.flags().chain(defaults.flags()).collect();
        flags.iter().map(|(flag, value)| format!("{flag}={value}")).collect::<Vec<_>>().join(" ")
    }

    /// The flags that are given, with their values.
    fn flags(&self) -> impl Iterator<Item = (&'static str, String)> {
        let defaults = self.default.iter().map(|(column, value)| format!("{column}={value}"));
        let defaults: Vec<_> = defaults.collect();
        [
            ("--delimiter", self.delimiter.map(debug)),
            ("--encoding", (self.encoding != Encoding::Utf8).then(|| debug(self.encoding))),
            ("--columns", (!self.columns.is_empty()).then(|| debug(&self.columns))),
            ("--no-header", self.no_header.then(|| debug(true))),
            ("--ignore-other-columns", self.ignore_other_columns.then(|| debug(true))),
            ("--where", (!self.conditions.is_empty()).then(|| debug(&self.conditions))),
            ("--event", self.event.as_ref().map(debug)),
            ("--scope", self.scope.as_ref().map(debug)),
            ("--default", (!defaults.is_empty()).then(|| debug(&defaults))),
            (
                "--time-format",
                (self.time_format != TimeFormat::default()).then(|| debug(self.time_format)),
            ),
            ("--time-zone", self.time_zone.as_ref().map(debug)),
            ("templates", self.of_templates.then(|| debug(true))),
        ]
        .into_iter()
        .filter_map(|(flag, value)| Some((flag, value?)))
    }
}

impl Defaults {
    /// The flags that are given, with their values.
    fn flags(&self) -> impl Iterator<Item = (&'static str, String)> {
        [
            ("--business", self.business.as_ref().map(debug)),
            ("--region", self.region.as_ref().map(|region| debug(region.name()))),
            ("--undated-opt-outs", self.undated_opt_outs.as_ref().map(debug)),
        ]
        .into_iter()
        .filter_map(|(flag, value)| Some((flag, value?)))
    }
}

fn debug(value: impl std::fmt::Debug) -> String {
    format!("{value:?}")
}

impl Encoding {
    /// The text of these bytes.
    pub(super) fn decode(self, bytes: &[u8]) -> Result<Cow<'_, str>, NotUtf8> {
        match self {
            Self::Windows1252 => Ok(encoding_rs::WINDOWS_1252.decode_without_bom_handling(bytes).0),
            Self::Utf8 => {
                let text = std::str::from_utf8(bytes);
                text.map(Cow::Borrowed)
                    .map_err(|error| NotUtf8 { valid_up_to: error.valid_up_to() })
            }
        }
    }
}

/// Bytes that are not UTF-8, in a file that is said to be.
#[derive(Debug, thiserror::Error)]
#[error("is not UTF-8: save the file as UTF-8, or give --encoding windows-1252 if it is that")]
pub(super) struct NotUtf8 {
    /// How many bytes before them are UTF-8.
    pub(super) valid_up_to: usize,
}
