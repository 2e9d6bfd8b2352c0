//! Logging in on a replication connection: cleartext, md5, SCRAM-SHA-256 and SCRAM-SHA-256-PLUS.
//!
//! The server names the method. Two rules protect the user: a cleartext password goes only over a transport that nobody
//! else reads, and a SCRAM exchange counts only when the server has proved that it knows the password too.

use bytes::BytesMut;
use postgres_protocol::authentication::{md5_hash, sasl};
use postgres_protocol::message::backend::{AuthenticationSaslBody, Message};
use postgres_protocol::message::frontend;
use tokio_postgres::fallible_iterator::FallibleIterator;

use super::wire::Wire;
use crate::postgres::connect::ConnectError;
use crate::postgres::guard::REFUSED;
use crate::postgres::server_error::ServerError;
use crate::postgres::source::{ChannelBinding, Secret, SourceConfig};

/// Answers the server until it says that the login is done.
pub(super) async fn log_in(
    wire: &mut Wire,
    config: &SourceConfig,
    password: Option<&Secret>,
) -> Result<(), ConnectError> {
    let password_bytes = || match password {
        Some(password) => Ok(password.expose().as_bytes()),
        None => Err(ConnectError::NoPassword { user: config.user.clone() }),
    };
    let answer = match receive(wire, config).await? {
        Message::AuthenticationOk => return unbound_is_allowed(config),
        Message::AuthenticationCleartextPassword => {
            unbound_is_allowed(config)?;
            if !wire.transport().is_private() {
                return Err(ConnectError::Authentication(REFUSED.to_owned()));
            }
            password_bytes()?.to_vec()
        }
        Message::AuthenticationMd5Password(body) => {
            unbound_is_allowed(config)?;
            md5_hash(config.user.as_bytes(), password_bytes()?, body.salt()).into_bytes()
        }
        Message::AuthenticationSasl(body) => return scram(wire, config, password_bytes()?, &body).await,
        Message::AuthenticationGss | Message::AuthenticationSspi | Message::AuthenticationKerberosV5 => {
            return Err(ConnectError::Authentication(
                "the server asks for GSSAPI, SSPI or Kerberos, which are not supported; add a scram-sha-256 line to pg_hba.conf"
                    .to_owned(),
            ));
        }
        _ => return Err(unexpected()),
    };
    let mut message = BytesMut::new();
    frontend::password_message(&answer, &mut message)?;
    wire.send(&message).await?;
    match receive(wire, config).await? {
        Message::AuthenticationOk => Ok(()),
        _ => Err(unexpected()),
    }
}

async fn scram(
    wire: &mut Wire,
    config: &SourceConfig,
    password: &[u8],
    offered: &AuthenticationSaslBody,
) -> Result<(), ConnectError> {
    let (mut plain, mut plus) = (false, false);
    let mut mechanisms = offered.mechanisms();
    while let Some(mechanism) = mechanisms.next()? {
        plain |= mechanism == sasl::SCRAM_SHA_256;
        plus |= mechanism == sasl::SCRAM_SHA_256_PLUS;
    }
    let end_point = match config.channel_binding {
        ChannelBinding::Disable => None,
        ChannelBinding::Prefer | ChannelBinding::Require => wire.transport().server_end_point(),
    };
    let (mechanism, binding) = match end_point {
        Some(hash) if plus => (sasl::SCRAM_SHA_256_PLUS, sasl::ChannelBinding::tls_server_end_point(hash)),
        _ if !plain => {
            return Err(ConnectError::Authentication(
                "the server offers no method that is known here; use scram-sha-256 in pg_hba.conf".to_owned(),
            ));
        }
        // "We could, but you did not offer it": lets the server notice that somebody removed the offer.
        Some(_) => (sasl::SCRAM_SHA_256, sasl::ChannelBinding::unrequested()),
        None => (sasl::SCRAM_SHA_256, sasl::ChannelBinding::unsupported()),
    };
    if mechanism != sasl::SCRAM_SHA_256_PLUS {
        unbound_is_allowed(config)?;
    }
    let wrong_proof = |_| {
        ConnectError::Authentication(
            "the server's part of the SCRAM exchange is wrong; is it the right server?".to_owned(),
        )
    };
    let mut exchange = sasl::ScramSha256::new(password, binding);
    let mut message = BytesMut::new();
    frontend::sasl_initial_response(mechanism, exchange.message(), &mut message)?;
    wire.send(&message).await?;
    let Message::AuthenticationSaslContinue(challenge) = receive(wire, config).await? else {
        return Err(unexpected());
    };
    exchange.update(challenge.data()).map_err(wrong_proof)?;
    message.clear();
    frontend::sasl_response(exchange.message(), &mut message)?;
    wire.send(&message).await?;
    let Message::AuthenticationSaslFinal(proof) = receive(wire, config).await? else {
        return Err(unexpected());
    };
    exchange.finish(proof.data()).map_err(wrong_proof)?;
    match receive(wire, config).await? {
        Message::AuthenticationOk => Ok(()),
        _ => Err(unexpected()),
    }
}

fn unbound_is_allowed(config: &SourceConfig) -> Result<(), ConnectError> {
    match config.channel_binding {
        ChannelBinding::Disable | ChannelBinding::Prefer => Ok(()),
        ChannelBinding::Require => Err(ConnectError::Authentication(
            "channel_binding=require, and the server does not bind the login to the TLS channel; it needs TLS, a password stored as scram-sha-256, and a certificate whose signature names a hash"
                .to_owned(),
        )),
    }
}

async fn receive(wire: &mut Wire, config: &SourceConfig) -> Result<Message, ConnectError> {
    match wire.receive().await? {
        Message::ErrorResponse(body) => {
            Err(ConnectError::from_server(ServerError::from_fields(body.fields()), config))
        }
        message => Ok(message),
    }
}

fn unexpected() -> ConnectError {
    ConnectError::Protocol("a message that does not belong to a login; is this PostgreSQL's port?".to_owned())
}
