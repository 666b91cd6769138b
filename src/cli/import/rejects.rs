//! Rows that were not recorded: told, and kept in the form in which they came.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Seek as _, SeekFrom, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context as _, bail};

use super::progress::Progress;
use super::rows::{Fault, Parser, Raw, Row};
use crate::cli::print;
use consentd_os::files;

/// Where rejected rows go.
pub(super) struct Rejects {
    file: Option<BufWriter<File>>,
    delimiter: u8,
}

impl Rejects {
    /// Nowhere, or into a file: a new one, an empty one, or the one of an import that was broken
    /// off and is gone on with. What else there is stays as it is.
    pub(super) fn open(
        path: Option<&Path>,
        progress: &Progress,
        parser: &Parser,
        delimiter: u8,
    ) -> anyhow::Result<Self> {
        let Some(path) = path else { return Ok(Self { file: None, delimiter }) };
        let cannot = || format!("cannot write the rejected rows to {}", path.display());
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).write(true);
        let mut file = files::no_follow(&mut options).open(path).with_context(cannot)?;
        let found = file.metadata().with_context(cannot)?;
        let is_from_before = progress.rejects_inode == Some(found.ino());
        if found.len() > 0 && !is_from_before {
            bail!(
                "--rejects: {} is not empty, and stays as it is: move it away, or give another file",
                path.display()
            );
        }
        let keep = progress.rejects.min(found.len());
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

    /// The file's inode; none where there is no file.
    pub(super) fn inode(&self) -> anyhow::Result<Option<u64>> {
        let Some(file) = &self.file else { return Ok(None) };
        Ok(Some(file.get_ref().metadata()?.ino()))
    }

    /// Writes out what is waiting; tells how long the file is then.
    pub(super) fn flush(&mut self) -> anyhow::Result<u64> {
        let Some(file) = &mut self.file else { return Ok(0) };
        file.flush()?;
        Ok(file.stream_position()?)
    }
}
