//! Webhooks as the platform sends them, to the real binary on a file and on a Redis.

pub mod client;
mod forms;
mod ids;
mod limits;
mod numbers;
mod reload;
mod repeats;
mod states;
mod week;
