//! Writes the tables of docs/ that are generated from the code, into their pages:
//! `cargo run --example docs-tables`.

#![allow(clippy::expect_used, reason = "a tool for developers ends with what was wrong")]

#[path = "../tests/house/tables.rs"]
mod tables;

fn main() -> std::io::Result<()> {
    tables::write(std::path::Path::new(env!("CARGO_MANIFEST_DIR")))
}
