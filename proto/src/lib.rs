//! The contract between router and shard, generated from `gridwork/shard/v1/shard.proto`.

/// Version of the contract that this build speaks; compared with `InfoResponse.protocol_version`.
pub const PROTOCOL_VERSION: u32 = v1::Protocol::Version as u32;

/// Generated messages, client and server.
pub mod v1 {
    tonic::include_proto!("gridwork.shard.v1");
}
