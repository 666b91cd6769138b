//! Webhooks as the platform sends them, to the real binary on a file and on a Redis.

pub mod client;
mod failures;
mod forms;
mod ids;
mod limits;
mod numbers;
mod provider;
mod reload;
mod repeats;
mod seeing;
mod signup;
mod states;
mod week;
