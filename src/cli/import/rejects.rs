//! Rows that were not recorded: told, and kept in the form in which they came.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Seek as _, SeekFrom, Write};
use std::path::Path;

use anyhow::Context as _;

use super::rows::{Fault, Parser, Raw, Row};
use crate::cli::print;

/// Where rejected rows go.
pub(super) struct Rejects {
    file: Option<BufWriter<File>>,
    delimiter: u8,
}

impl Rejects {
    /// Nowhere, or into a file: a new one, or one of which `keep` bytes are from before.
    pub(super) fn open(
        path: Option<&Path>,
        keep: u64,
        parser: &Parser,
        delimiter: u8,
    ) -> anyhow::Result<Self> {
        let Some(path) = path else { return Ok(Self { file: None, delimiter }) };
        let cannot = || format!("cannot write the rejected rows to {}", path.display());
        let mut options = OpenOptions::new();
        let file = options.create(true).truncate(false).write(true).open(path);
        let mut file = file.with_context(cannot)?;
        // It may be another file than before.
        let keep = keep.min(file.metadata().with_context(cannot)?.len());
        file.set_len(keep).with_context(cannot)?;
        file.seek(SeekFrom::Start(keep)).with_context(cannot)?;
        let mut rejects = Self { file: Some(BufWriter::new(file)), delimiter };
        if keep == 0
            && let Some(header) = parser.header()
        {
            rejects.write(&Raw::Cells(header.clone())).with_context(cannot)?;
        }
        Ok(rejects)
    }

    /// Tells of a row, and keeps it.
    pub(super) fn add(&mut self, row: &Row, fault: &Fault) -> anyhow::Result<()> {
        let Fault { field, reason } = fault;
        let at = if field.is_empty() { String::new() } else { format!("{field}: ") };
        print::note(&format!("line {}: {at}{reason}", row.line));
        self.write(&row.raw).context("cannot write a rejected row")
    }

    fn write(&mut self, raw: &Raw) -> anyhow::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        match raw {
            Raw::Line(line) => {
                file.write_all(line)?;
                file.write_all(b"\n")?;
            }
            Raw::Cells(cells) => {
                let mut builder = csv::WriterBuilder::new();
                let mut writer = builder.flexible(true).delimiter(self.delimiter).from_writer(file);
                writer.write_record(cells)?;
                writer.flush()?;
            }
            Raw::TooLong => {}
        }
        Ok(())
    }

    /// Writes out what is waiting; tells how long the file is then.
    pub(super) fn flush(&mut self) -> anyhow::Result<u64> {
        let Some(file) = &mut self.file else { return Ok(0) };
        file.flush()?;
        Ok(file.stream_position()?)
    }
}
