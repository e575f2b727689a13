//! Penstock's control process: configuration, keys, kernel routes and neighbours, telemetry, command line.

mod answers;
pub mod api;
pub mod carrier;
pub mod cli;
pub mod clients;
pub mod config;
pub mod events;
pub mod gateway;
pub mod health;
pub mod history;
pub mod ike;
pub mod neighbours;
pub mod netlink;
pub mod process_log;
pub mod publish;
mod reach;
pub mod region;
pub mod run;
pub mod scrape;
pub mod show;
pub mod supervise;
pub mod telemetry;
pub mod top;
pub mod twins;
