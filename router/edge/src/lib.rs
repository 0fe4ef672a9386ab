//! Files that guard the edge: certificates, private keys and API keys. The launcher checks them before it starts anything,
//! and the router uses them and takes up their changes.

pub mod api_key_file;
pub mod file;
pub mod tls;
