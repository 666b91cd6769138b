//! temporary
pub mod admin;
pub mod app;
pub mod cli;
pub mod clock;
pub mod config;
pub mod consent;
pub mod decision;
pub mod follower;
pub mod gate;
pub mod grpc;
pub mod ledger;
pub mod metrics;
pub mod recorder;
pub mod table;
