//! `proto`: writes the contract, for users who have only the binary.

#![allow(clippy::doc_markdown, reason = "these comments are the help that a terminal shows")]

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use prost::Message as _;
use prost_types::FileDescriptorSet;

use super::Verdict;
use super::output;
use crate::grpc::DESCRIPTOR_SET;
use consentd_os::files;

/// The contract's sources, by their import paths.
const SOURCES: [(&str, &str); 3] = [
    ("consent/v1/consent.proto", include_str!("../../proto/consent/v1/consent.proto")),
    (
        "consent/v1/consent_service.proto",
        include_str!("../../proto/consent/v1/consent_service.proto"),
    ),
    (
        "consent/v1/record_service.proto",
        include_str!("../../proto/consent/v1/record_service.proto"),
    ),
];

#[derive(Args, Debug)]
#[group(required = true, multiple = true)]
pub(super) struct ProtoArgs {
    /// Write it as a FileDescriptorSet, all imports included: what ghz takes by --protoset and
    /// grpcurl by -protoset; - is standard output
    #[arg(long, value_name = "FILE")]
    descriptor_set: Option<PathBuf>,
    /// Write its sources into this folder, to generate clients from
    #[arg(long, value_name = "FOLDER")]
    sources: Option<PathBuf>,
}

/// The contract and the messages of its error details, each file once.
fn descriptor_set() -> anyhow::Result<Vec<u8>> {
    let mut all = FileDescriptorSet::decode(DESCRIPTOR_SET)?;
    for file in FileDescriptorSet::decode(tonic_types::pb::FILE_DESCRIPTOR_SET)?.file {
        if all.file.iter().all(|known| known.name != file.name) {
            all.file.push(file);
        }
    }
    Ok(all.encode_to_vec())
}

pub(super) fn proto(args: &ProtoArgs) -> anyhow::Result<Verdict> {
    if let Some(path) = &args.descriptor_set {
        output::file(path, &descriptor_set()?)?;
    }
    for (name, source) in SOURCES.iter().filter(|_| args.sources.is_some()) {
        let path = args.sources.as_deref().unwrap_or(Path::new("")).join(name);
        let folder = files::folder(&path);
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot make the folder {}", folder.display()))?;
        output::file(&path, source.as_bytes())?;
    }
    Ok(Verdict::Yes)
}
