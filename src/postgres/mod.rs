//! All that talks to a source database.
//!
//! [`source`] says which database and how; `transport` opens the socket and encrypts it ([`tls`]); on it stand the
//! SQL connection ([`connect`]) and the [`replication`] connection, whose frames [`pgoutput`] reads, and values in
//! [`binary`] form. That they have all reached the same server, [`server`] says. Over SQL go [`catalog`], [`publication`], [`slot`], [`heartbeat`] and the [`precheck`]. Which tables are
//! meant, [`objects`] say.

pub mod binary;
pub mod catalog;
pub mod connect;
mod dsn;
mod guard;
pub mod heartbeat;
pub mod objects;
pub mod password;
pub mod pgoutput;
pub mod precheck;
pub mod publication;
pub mod relations;
pub mod replication;
pub mod server;
pub mod server_error;
pub mod slot;
pub mod snapshot;

pub mod source;
pub mod sql;
pub mod timeline;
pub mod tls;
mod transport;
