//! The `consentd` binary: see the library's `cli`.

#![warn(
    missing_docs,
    unreachable_pub,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used
)]

fn main() -> std::process::ExitCode {
    consentd::cli::main()
}
