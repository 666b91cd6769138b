//! The `consentd` binary: see the library's `cli`.

fn main() -> std::process::ExitCode {
    consentd::cli::main()
}
