//! Writes the tables of docs/ that are generated from the code, into their pages:
//! `cargo run --example docs-tables`.

#[path = "../tests/house/tables.rs"]
mod tables;

fn main() -> std::io::Result<()> {
    tables::write(std::path::Path::new(env!("CARGO_MANIFEST_DIR")))
}
