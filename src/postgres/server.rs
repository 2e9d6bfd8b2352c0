//! Which running server a connection has reached.
//!
//! Every connection looks the address up anew, and it may lead to another server each time: a failover has moved a name
//! or a proxy, and the old primary or a standby is still there. What one server's snapshot sees says nothing of what
//! another one's stream sends.

use tokio_postgres::Client;

use super::connect::ConnectError;
use super::source::SourceConfig;

/// One value, for sessions that read no more.
pub(super) const SQL: &str = "SELECT concat(extract(epoch FROM pg_postmaster_start_time()),
                                            CASE WHEN pg_is_in_recovery() THEN ' standby' END)";

/// A server from its start to its end, or to its promotion. As long as it is the same, so are its cluster and timeline.
///
/// The functions that tell those are revoked by some providers; the moment of the start does as well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server(String);

impl Server {
    /// As [`SQL`] tells it.
    pub(super) fn new(told: String) -> Self {
        Server(told)
    }

    /// The server of a session.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn of(client: &Client) -> Result<Self, tokio_postgres::Error> {
        client.query_one(SQL, &[]).await?.try_get(0).map(Server)
    }

    /// Whether `reached` by this address is the same.
    pub(in crate::postgres) fn check(
        &self,
        reached: &Server,
        config: &SourceConfig,
    ) -> Result<(), ConnectError> {
        match self == reached {
            true => Ok(()),
            false => Err(ConnectError::Elsewhere { address: config.address() }),
        }
    }

    /// Whether it is a standby.
    pub fn is_standby(&self) -> bool {
        self.0.ends_with("standby")
    }
}
