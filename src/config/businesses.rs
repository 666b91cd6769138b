//! Which businesses the table holds.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Deserialize;

use super::{ConfigError, LedgerAddress, wrong};
use consentd_core::businesses::{BusinessSet, Businesses};
use consentd_os::io_hint;

/// The most businesses that a sidecar can be told to hold.
const MAX_BUSINESSES: usize = 100_000;

/// Which businesses the table holds.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct BusinessArgs {
    /// Hold the pairs of these businesses alone, by their ids, separated by commas, and refuse
    /// questions about others; with a ledger in Redis [default: all]
    #[arg(long, env = "CONSENTD_BUSINESS", value_name = "ID,ID")]
    pub business: Option<String>,
    /// The same from a file, one id a line, # for comments; read again every five seconds and on
    /// SIGHUP
    #[arg(long, env = "CONSENTD_BUSINESS_FILE", value_name = "FILE")]
    pub business_file: Option<PathBuf>,
}

impl BusinessArgs {
    /// These settings; where one is unset, that of `weaker`.
    pub(super) fn or(self, weaker: Self) -> Self {
        Self {
            business: self.business.or(weaker.business),
            business_file: self.business_file.or(weaker.business_file),
        }
    }

    /// Where the businesses are named, if not all are held.
    pub(super) fn validate(
        &self,
        ledger: &LedgerAddress,
    ) -> Result<Option<BusinessSource>, ConfigError> {
        let named = self.business.as_deref().filter(|named| !named.is_empty());
        let file = self.business_file.clone().filter(|file| !file.as_os_str().is_empty());
        if named.is_none() && file.is_none() {
            return Ok(None);
        }
        let setting = if named.is_some() { "--business" } else { "--business-file" };
        if matches!(ledger, LedgerAddress::File(_)) {
            let why = "is for a ledger in Redis: the sidecar of a file holds all of its businesses";
            return Err(wrong(setting, why));
        }
        let named = named.into_iter().flat_map(|named| named.split(','));
        let named: Vec<_> = named.map(|id| id.trim().to_owned()).collect();
        BusinessSet::of(named.iter().map(String::as_str))
            .map_err(|violation| wrong("--business", violation.description))?;
        Ok(Some(BusinessSource { named, file }))
    }
}

/// Where the businesses that the table holds are named.
#[derive(Clone, Debug)]
pub struct BusinessSource {
    named: Vec<String>,
    /// The file that names more of them.
    pub file: Option<PathBuf>,
}

impl BusinessSource {
    /// All businesses that are named. Reads the file.
    ///
    /// # Errors
    ///
    /// What is wrong with the file, or that no business is named.
    pub fn read(&self) -> Result<Businesses, String> {
        let text = self.file.as_deref().map(read).transpose()?.unwrap_or_default();
        let in_file = text.lines().map(str::trim);
        let in_file = in_file.filter(|line| !line.is_empty() && !line.starts_with('#'));
        let ids: Vec<_> = self.named.iter().map(String::as_str).chain(in_file).collect();
        if self.file.is_some() && ids.len() == self.named.len() {
            return Err("--business-file: it names no business, one a line".to_owned());
        }
        if ids.len() > MAX_BUSINESSES {
            let why = format!("--business-file: names more than {MAX_BUSINESSES} businesses");
            return Err(why);
        }
        BusinessSet::of(ids)
            .map(Businesses::only)
            .map_err(|violation| format!("--business-file: {}", violation.description))
    }
}

fn read(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|source| {
        let hint = io_hint::hint(path, &source);
        format!("--business-file: cannot read {}: {source}{hint}", path.display())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn validated(
        business: &str,
        file: Option<&Path>,
        ledger: &str,
    ) -> Result<Option<BusinessSource>, ConfigError> {
        let business_file = file.map(Path::to_owned);
        let args = BusinessArgs { business: Some(business.to_owned()), business_file };
        args.validate(&super::super::LedgerArgs::default().address_of(ledger).unwrap())
    }

    #[test]
    fn flag_and_file_are_one_set() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "# those of the north\n\n globex \nacme\na,b\n").unwrap();
        let source = validated(" acme,initech ", Some(file.path()), "redis://h").unwrap().unwrap();
        let ids = |businesses: &Businesses| {
            businesses.ids().unwrap().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(ids(&source.read().unwrap()), ["a,b", "acme", "globex", "initech"]);
        let source = validated("", Some(file.path()), "redis://h").unwrap().unwrap();
        assert_eq!(ids(&source.read().unwrap()), ["a,b", "acme", "globex"]);
        assert!(validated("", None, "redis://h").unwrap().is_none());
        assert!(validated("", None, "file:a").unwrap().is_none());
    }

    #[test]
    fn what_names_no_business_is_refused_with_the_setting() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let source = validated("acme", Some(file.path()), "redis://h").unwrap().unwrap();
        for (text, part) in [
            ("", "names no business"),
            ("# globex\n", "names no business"),
            ("glo\tbex\n", "--business-file: "),
        ] {
            std::fs::write(file.path(), text).unwrap();
            let said = source.read().unwrap_err();
            assert!(said.contains(part) && said.starts_with("--business-file"), "{said}");
        }
        let gone = validated("", Some(Path::new("/nowhere")), "redis://h").unwrap().unwrap();
        assert!(gone.read().unwrap_err().contains("/nowhere"));
        for (business, ledger, part) in [
            ("acme", "file:a.redb", "--business: is for a ledger in Redis"),
            ("acme,,globex", "redis://h", "--business: "),
        ] {
            let said = validated(business, None, ledger).unwrap_err().to_string();
            assert!(said.contains(part), "{said}");
        }
    }
}
