//! The client against the real binary, and against servers that misbehave.
//!
//! The binary is that of `CONSENTD_BIN`, or the one that Cargo built beside this test, or `consentd` on the path.

mod campaigns;
mod conversation;
mod endings;
mod examples;
mod faults;
mod fixture;
mod silent;
mod sizes;
mod tls;
mod watching;
