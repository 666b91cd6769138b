//! Rejected rows: they are reported, and written to a file as they were in the input.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Seek as _, SeekFrom, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context as _, bail};

use super::fault::Fault;
use super::progress::Progress;
use super::rows::Row;
use crate::cli::output;
use consentd_os::files;

/// The file of rejected rows, if there is one.
pub(super) struct Rejects {
    file: Option<BufWriter<File>>,
}

impl Rejects {
    /// Opens the file: a new or empty one, or the one of an interrupted import that continues. Any
    /// other file is refused and left as it is. It begins with what the input has before its rows, so
    /// that it can be imported by the same command.
    pub(super) fn open(
        path: Option<&Path>,
        progress: &Progress,
        preamble: &[u8],
    ) -> anyhow::Result<Self> {
        let Some(path) = path else { return Ok(Self { file: None }) };
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
        let mut file = BufWriter::new(file);
        if keep == 0 {
            file.write_all(preamble).with_context(cannot)?;
        }
        Ok(Self { file: Some(file) })
    }

    /// Reports a row, and writes it.
    pub(super) fn add(&mut self, row: &Row, fault: &Fault) -> anyhow::Result<()> {
        let Fault { field, reason } = fault;
        let at = if field.is_empty() { String::new() } else { format!("{field}: ") };
        output::note(&format!("line {}: {at}{reason}", row.line));
        let Some(file) = &mut self.file else { return Ok(()) };
        // A row that was too long to be kept has no bytes.
        if row.raw.is_empty() {
            return Ok(());
        }
        let written = file.write_all(&row.raw).and_then(|()| file.write_all(b"\n"));
        written.context("cannot write a rejected row")
    }

    /// The file's inode, if there is a file.
    pub(super) fn inode(&self) -> anyhow::Result<Option<u64>> {
        let Some(file) = &self.file else { return Ok(None) };
        Ok(Some(file.get_ref().metadata()?.ino()))
    }

    /// Flushes the buffer. Returns the length of the file.
    pub(super) fn flush(&mut self) -> anyhow::Result<u64> {
        let Some(file) = &mut self.file else { return Ok(0) };
        file.flush()?;
        Ok(file.stream_position()?)
    }
}
