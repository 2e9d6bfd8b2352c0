//! TLS as libpq means it: what each `sslmode` verifies, client certificates, and the hash that binds SCRAM to the
//! channel.
//!
//! `require` encrypts without verifying (unless `sslrootcert` is given), `verify-ca` verifies the chain and not the
//! name, `verify-full` verifies both. Trusted authorities are those of `sslrootcert`, else of
//! `~/.postgresql/root.crt`; `verify-full` falls back to the operating system's.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use sha2::{Digest, Sha256, Sha384, Sha512};

use super::source::{RootCert, SourceConfig, SslMode, SslNegotiation};

/// TLS cannot be set up or agreed.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A certificate or key file cannot be read.
    #[error("{what} {path} cannot be read: {reason}; check {parameter} and the file's permissions")]
    File {
        /// What the file holds.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
        /// The parameter that names it.
        parameter: &'static str,
    },
    /// The key is encrypted.
    #[error(
        "key {0} is encrypted; decrypt it: openssl pkcs8 -topk8 -nocrypt -in {0} -out NEW, and give NEW as sslkey"
    )]
    EncryptedKey(PathBuf),
    /// Nothing to verify against.
    #[error(
        "no certificate authority is known; give sslrootcert=FILE, or sslrootcert=system with sslmode=verify-full"
    )]
    NoRoots,
    /// rustls refuses the certificates or the key.
    #[error("the client certificate or the trusted authorities cannot be used: {0}")]
    Configuration(String),
    /// The host cannot be the name in a certificate.
    #[error(
        "'{0}' cannot be verified as a host name; use the name in the server's certificate, or sslmode=verify-ca"
    )]
    Name(String),
    /// The server offers no TLS.
    #[error(
        "the server offers no TLS; set ssl=on there, or use sslmode=prefer or disable if the network may be trusted"
    )]
    NotOffered,
    /// The server's certificate is not accepted.
    #[error(
        "the server's certificate is not accepted: {0}; give its authority as sslrootcert, and connect by the name in the certificate"
    )]
    Certificate(String),
    /// The handshake failed.
    #[error("the TLS handshake failed: {0}")]
    Handshake(String),
}

impl TlsError {
    /// Sorts an error of a handshake.
    pub(super) fn from_handshake(error: &std::io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(rustls::Error::InvalidCertificate(reason)) => TlsError::Certificate(reason.to_string()),
            _ => TlsError::Handshake(error.to_string()),
        }
    }
}

/// The client's side of TLS for `config`, for all connections to it.
pub async fn client_config(config: &SourceConfig) -> Result<Arc<ClientConfig>, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let verify = match config.sslmode {
        SslMode::Require if config.sslrootcert.is_some() => SslMode::VerifyCa,
        mode => mode,
    };
    let verifier: Arc<dyn ServerCertVerifier> = match verify {
        SslMode::VerifyCa | SslMode::VerifyFull => {
            let roots = Arc::new(trusted_roots(config, verify).await?);
            let chain = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider))
                .build()
                .map_err(|e| TlsError::Configuration(e.to_string()))?;
            if verify == SslMode::VerifyFull { chain } else { Arc::new(AnyName { chain }) }
        }
        _ => Arc::new(Unverified { provider: Arc::clone(&provider) }),
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| TlsError::Configuration(e.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut tls = match (&config.sslcert, &config.sslkey) {
        (Some(cert), Some(key)) => builder
            .with_client_auth_cert(certificates(cert, "sslcert").await?, private_key(key).await?)
            .map_err(|e| TlsError::Configuration(e.to_string()))?,
        _ => builder.with_no_client_auth(),
    };
    if config.sslnegotiation == SslNegotiation::Direct {
        tls.alpn_protocols = vec![b"postgresql".to_vec()];
    }
    Ok(Arc::new(tls))
}

async fn trusted_roots(config: &SourceConfig, mode: SslMode) -> Result<RootCertStore, TlsError> {
    let file = match &config.sslrootcert {
        Some(RootCert::File(path)) => Some(path.clone()),
        Some(RootCert::System) => None,
        None => {
            let home = std::env::var_os("HOME").map(PathBuf::from);
            let default = home.map(|home| home.join(".postgresql/root.crt")).filter(|path| path.is_file());
            // Any authority of the system's signs certificates for anybody: without the name that proves nothing.
            if default.is_none() && mode == SslMode::VerifyCa {
                return Err(TlsError::NoRoots);
            }
            default
        }
    };
    let mut roots = RootCertStore::empty();
    match file {
        Some(path) => {
            let (added, _) = roots.add_parsable_certificates(certificates(&path, "sslrootcert").await?);
            if added == 0 {
                return Err(unreadable(&path, "sslrootcert", "it holds no usable certificate".to_owned()));
            }
        }
        None => {
            let native = tokio::task::spawn_blocking(rustls_native_certs::load_native_certs).await;
            let native = native.map_err(|e| TlsError::Configuration(e.to_string()))?;
            let (added, _) = roots.add_parsable_certificates(native.certs);
            if added == 0 {
                return Err(TlsError::NoRoots);
            }
        }
    }
    Ok(roots)
}

async fn certificates(
    path: &Path,
    parameter: &'static str,
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = tokio::fs::read(path).await.map_err(|e| unreadable(path, parameter, e.to_string()))?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        Ok(_) => Err(unreadable(path, parameter, "it holds no PEM certificate".to_owned())),
        Err(e) => Err(unreadable(path, parameter, e.to_string())),
    }
}

async fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let pem = tokio::fs::read(path).await.map_err(|e| unreadable(path, "sslkey", e.to_string()))?;
    let text = String::from_utf8_lossy(&pem);
    if text.contains("BEGIN ENCRYPTED PRIVATE KEY") || text.contains("Proc-Type: 4,ENCRYPTED") {
        return Err(TlsError::EncryptedKey(path.to_owned()));
    }
    PrivateKeyDer::from_pem_slice(&pem).map_err(|e| unreadable(path, "sslkey", e.to_string()))
}

fn unreadable(path: &Path, parameter: &'static str, reason: String) -> TlsError {
    let what = if parameter == "sslkey" { "key" } else { "certificate" };
    TlsError::File { what, path: path.to_owned(), reason, parameter }
}

/// Accepts any certificate (`sslmode=require` and weaker): the channel is encrypted, the peer is not known. The
/// handshake's signature is still checked, so that the peer holds the key of the certificate that it shows.
#[derive(Debug)]
struct Unverified {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Verifies the chain and forgives the name (`sslmode=verify-ca`).
#[derive(Debug)]
struct AnyName {
    chain: Arc<WebPkiServerVerifier>,
}

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        // The name is checked last, after everything else about the chain has passed.
        match self.chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// `tls-server-end-point` (RFC 5929): the hash of the server's certificate by the hash function of its signature, MD5
/// and SHA-1 replaced by SHA-256. `None` where the signature names no single hash (Ed25519, RSA-PSS).
pub(super) fn server_end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    match signature_algorithm(certificate)? {
        // 1.2.840.113549.1.1.{4,5,11}: RSA with MD5, SHA-1, SHA-256; 1.2.840.10045.4.{1,3.2}: ECDSA with SHA-1, SHA-256
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 4 | 5 | 11]
        | [0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 1]
        | [0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2] => Some(Sha256::digest(certificate).to_vec()),
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 12] | [0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 3] => {
            Some(Sha384::digest(certificate).to_vec())
        }
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 13] | [0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 4] => {
            Some(Sha512::digest(certificate).to_vec())
        }
        _ => None,
    }
}

/// The object identifier in `Certificate ::= SEQUENCE { tbs SEQUENCE, signatureAlgorithm SEQUENCE { OID, … }, … }`.
fn signature_algorithm(certificate: &[u8]) -> Option<&[u8]> {
    const SEQUENCE: u8 = 0x30;
    const OBJECT_IDENTIFIER: u8 = 0x06;
    let (fields, _) = der_value(certificate, SEQUENCE)?;
    let (_, after_tbs) = der_value(fields, SEQUENCE)?;
    let (algorithm, _) = der_value(after_tbs, SEQUENCE)?;
    der_value(algorithm, OBJECT_IDENTIFIER).map(|(oid, _)| oid)
}

/// Splits one DER element with this tag off the front: its content, and what follows.
fn der_value(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&found, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (digits.iter().fold(0usize, |sum, digit| sum << 8 | usize::from(*digit)), rest)
        }
        _ => return None,
    };
    if found == tag { rest.split_at_checked(length) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};

    #[test]
    fn the_channel_is_bound_by_the_hash_of_the_certificates_signature() {
        for (algorithm, length) in
            [(&PKCS_ECDSA_P256_SHA256, Some(32)), (&PKCS_ECDSA_P384_SHA384, Some(48)), (&PKCS_ED25519, None)]
        {
            let key = KeyPair::generate_for(algorithm).unwrap();
            let certificate =
                CertificateParams::new(vec!["h".to_owned()]).unwrap().self_signed(&key).unwrap();
            assert_eq!(server_end_point(certificate.der()).map(|hash| hash.len()), length);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_as_a_certificate_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = server_end_point(&bytes);
            let mut sequences = vec![0x30, 0x84];
            sequences.extend(&bytes);
            let _ = server_end_point(&sequences);
        }
    }
}
