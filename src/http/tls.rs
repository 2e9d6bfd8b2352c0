//! TLS of the HTTP port: one certificate, HTTP/2 and HTTP/1.1 by ALPN.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

/// The port cannot speak TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or holds something else.
    #[error(
        "{path}, given as {flag}, cannot be used: {reason}; it has to be a readable PEM file with {holds}"
    )]
    File {
        /// The file.
        path: PathBuf,
        /// The flag that names it.
        flag: &'static str,
        /// Why.
        reason: String,
        /// What it should hold.
        holds: &'static str,
    },
    /// One of the two files is not given.
    #[error("{given} is given without {missing}; give both, or neither for HTTP without TLS")]
    Half {
        /// The flag that is given.
        given: &'static str,
        /// The flag that is missing.
        missing: &'static str,
    },
    /// Certificate and key are not for each other, or of a kind that cannot be used.
    #[error(
        "the certificate {cert} and the key {key} cannot be used: {reason}; see that they belong together"
    )]
    Pair {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Why.
        reason: String,
    },
}

const CERT: &str = "--http-tls-cert";
const KEY: &str = "--http-tls-key";

/// Reads the certificate, with those between it and its authority, and its key; without both there is no TLS.
///
/// # Errors
/// [`TlsError`].
pub async fn acceptor(cert: Option<&Path>, key: Option<&Path>) -> Result<Option<TlsAcceptor>, TlsError> {
    match (cert, key) {
        (Some(cert), Some(key)) => load(cert, key).await.map(Some),
        (Some(_), None) => Err(TlsError::Half { given: CERT, missing: KEY }),
        (None, Some(_)) => Err(TlsError::Half { given: KEY, missing: CERT }),
        (None, None) => Ok(None),
    }
}

async fn load(cert: &Path, key: &Path) -> Result<TlsAcceptor, TlsError> {
    let pem = read(cert, CERT, "the certificate chain").await?;
    let chain = CertificateDer::pem_slice_iter(&pem.bytes).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|error| pem.unusable(&error.to_string()))?;
    if chain.is_empty() {
        return Err(pem.unusable("there is no certificate in it"));
    }
    let pem = read(key, KEY, "the private key, not encrypted").await?;
    let private =
        PrivateKeyDer::from_pem_slice(&pem.bytes).map_err(|error| pem.unusable(&error.to_string()))?;
    let pair = |error: rustls::Error| TlsError::Pair {
        cert: cert.to_owned(),
        key: key.to_owned(),
        reason: error.to_string(),
    };
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(pair)?
        .with_no_client_auth()
        .with_single_cert(chain, private)
        .map_err(pair)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

struct Pem<'a> {
    path: &'a Path,
    flag: &'static str,
    holds: &'static str,
    bytes: Vec<u8>,
}

impl Pem<'_> {
    fn unusable(&self, reason: &str) -> TlsError {
        unusable(self.path, self.flag, self.holds, reason)
    }
}

async fn read<'a>(path: &'a Path, flag: &'static str, holds: &'static str) -> Result<Pem<'a>, TlsError> {
    let bytes = tokio::fs::read(path).await;
    let bytes = bytes.map_err(|error| unusable(path, flag, holds, &error.to_string()))?;
    Ok(Pem { path, flag, holds, bytes })
}

fn unusable(path: &Path, flag: &'static str, holds: &'static str, reason: &str) -> TlsError {
    TlsError::File { path: path.to_owned(), flag, reason: reason.to_owned(), holds }
}
