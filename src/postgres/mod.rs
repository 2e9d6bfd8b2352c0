//! All that talks to a source database.
//!
//! [`source`] says which database and how; [`transport`] opens the socket and encrypts it ([`tls`]); on it stand the
//! SQL connection ([`connect`]) and the [`replication`] connection, whose frames [`pgoutput`] reads.

pub mod connect;
pub mod dsn;
pub mod password;
pub mod pgoutput;
pub mod replication;
pub mod server_error;
pub mod source;
pub mod timeline;
pub mod tls;
pub mod transport;
