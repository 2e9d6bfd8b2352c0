//! A running broker's HTTP API, as commands call it.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::http::uri::{Scheme, Uri};
use axum::http::{Method, Request, StatusCode, header};
use clap::{Args, ValueEnum};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{Exit, Failure};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Answers come from memory, or after one write to the disk.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// More than the page of a task with 100,000 tables.
const MAX_ANSWER: usize = 64 << 20;

/// Which broker, and who asks.
#[derive(Debug, Args)]
pub struct ApiArguments {
    /// The broker's HTTP listener, without TLS
    #[arg(long, env = "MILLRACE_ENDPOINT", default_value = "http://127.0.0.1:9080", global = true)]
    endpoint: Uri,
    /// The broker's admin token, which changes need; from the data directory when absent and the broker is on this machine. Other users of this machine can
    /// see a command line: prefer the variable
    #[arg(long, env = "MILLRACE_TOKEN", hide_env_values = true, global = true)]
    token: Option<String>,
    /// Where the broker's data directory is, for its token
    #[arg(
        long,
        env = "MILLRACE_DATA_DIR",
        value_name = "DIRECTORY",
        default_value = "./millrace-data",
        global = true
    )]
    data_dir: PathBuf,
    /// How answers are printed
    #[arg(long, value_enum, default_value = "table", global = true)]
    pub output: Output,
}

/// How answers are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people
    Table,
    /// As the API gives them
    Json,
}

impl ApiArguments {
    /// What the broker says of something.
    ///
    /// # Errors
    /// [`Exit::Unreachable`], [`Exit::Refused`].
    pub async fn get(&self, path: &str) -> Result<Value, Failure> {
        self.call(Method::GET, path, None).await
    }

    /// Changes something.
    ///
    /// # Errors
    /// [`Exit::Unreachable`], [`Exit::Refused`].
    pub async fn change(&self, method: Method, path: &str, body: &Value) -> Result<Value, Failure> {
        self.call(method, path, Some(body)).await
    }

    async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, Failure> {
        let authority = self.authority()?;
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, &authority);
        if body.is_some() {
            let token = self.token().await?;
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let body = body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
        let request = request.body(body).map_err(|_| {
            Failure::new(Exit::Usage, "the token has characters that no token has; see --token")
        })?;
        let (status, answer) = timeout(ANSWER_TIMEOUT, self.exchange(&authority, request))
            .await
            .map_err(|_| self.unreachable("it does not answer"))??;
        let said = serde_json::from_slice::<Value>(&answer).ok();
        match (status.is_success(), said) {
            (true, Some(said)) => Ok(said),
            (true, None) => Err(Failure::failed("the broker's answer is not JSON; is that millrace?")),
            (false, said) => Err(refused(status, said, &answer)),
        }
    }

    fn authority(&self) -> Result<String, Failure> {
        let usage = |why| Failure::new(Exit::Usage, format!("--endpoint {} {why}", self.endpoint));
        match (self.endpoint.scheme(), self.endpoint.authority()) {
            (Some(scheme), Some(authority)) if *scheme == Scheme::HTTP => Ok(authority.to_string()),
            (Some(scheme), _) if *scheme == Scheme::HTTPS => {
                Err(usage("is for TLS, which this command does not speak yet; use curl"))
            }
            _ => Err(usage("is not like http://127.0.0.1:9080")),
        }
    }

    /// The token that was given, or that of a broker on this machine.
    async fn token(&self) -> Result<String, Failure> {
        if let Some(token) = &self.token {
            return Ok(token.clone());
        }
        // Who listens elsewhere may be anybody, and so may who is on the way.
        if !self.is_on_this_machine() {
            return Err(Failure::new(
                Exit::Usage,
                format!(
                    "changes need the broker's admin token, and that of this machine is not sent to {}; give the token with \
                     --token or MILLRACE_TOKEN",
                    self.endpoint
                ),
            ));
        }
        let path = self.data_dir.join("admin-token");
        match tokio::fs::read_to_string(&path).await {
            Ok(token) => Ok(token.trim().to_owned()),
            Err(error) => Err(Failure::new(
                Exit::Usage,
                format!(
                    "changes need the broker's admin token, and {} cannot be read: {error}; name the data directory with \
                     --data-dir, or give the token with --token or MILLRACE_TOKEN",
                    path.display()
                ),
            )),
        }
    }

    fn is_on_this_machine(&self) -> bool {
        let host = self.endpoint.host().unwrap_or_default();
        let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        address.map_or(host.eq_ignore_ascii_case("localhost"), |address| address.is_loopback())
    }

    async fn exchange(
        &self,
        authority: &str,
        request: Request<Body>,
    ) -> Result<(StatusCode, Vec<u8>), Failure> {
        let address =
            if self.endpoint.port().is_some() { authority.to_owned() } else { format!("{authority}:80") };
        let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
        let stream = stream
            .map_err(|_| self.unreachable("it does not answer"))?
            .map_err(|error| self.unreachable(error))?;
        let lost = |error: hyper::Error| self.unreachable(error);
        let (mut requests, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(lost)?;
        let exchange = async {
            let response = requests.send_request(request).await.map_err(lost)?;
            let status = response.status();
            let body = to_bytes(Body::new(response.into_body()), MAX_ANSWER).await;
            Ok((status, body.map_err(|error| self.unreachable(error))?.to_vec()))
        };
        tokio::select! {
            answer = exchange => answer,
            // The exchange ends first, or has its error from the connection.
            ended = connection => Err(self.unreachable(ended.err().map_or("it hung up".to_owned(), |error| error.to_string()))),
        }
    }

    fn unreachable(&self, why: impl std::fmt::Display) -> Failure {
        Failure::unreachable(&self.endpoint, why)
    }
}

/// What the broker says of why it does not.
fn refused(status: StatusCode, said: Option<Value>, answer: &[u8]) -> Failure {
    let text = |key: &str| said.as_ref().and_then(|said| said.get(key)).and_then(Value::as_str);
    let message = match (text("message"), text("next")) {
        (Some(message), Some(next)) => format!("{message}; {next}"),
        _ => format!("the broker answered {status}: {}", String::from_utf8_lossy(answer).trim()),
    };
    Failure::new(if status.is_server_error() { Exit::Failed } else { Exit::Refused }, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_token_of_this_machine_is_sent_to_no_other() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("admin-token"), "secret\n").unwrap();
        let arguments = |endpoint: &'static str, token: Option<&str>| ApiArguments {
            endpoint: Uri::from_static(endpoint),
            token: token.map(str::to_owned),
            data_dir: directory.path().to_owned(),
            output: Output::Table,
        };
        for here in
            ["http://127.0.0.1:9080", "http://[::1]:9080", "http://LocalHost:9080", "http://127.1.2.3"]
        {
            assert_eq!(arguments(here, None).token().await.unwrap_or_default(), "secret", "{here}");
        }
        for elsewhere in
            ["http://10.0.0.1:9080", "http://localhost.example.com", "http://127.0.0.1@evil.example"]
        {
            assert!(arguments(elsewhere, None).token().await.is_err(), "{elsewhere}");
            assert_eq!(arguments(elsewhere, Some("given")).token().await.unwrap_or_default(), "given");
        }
    }
}
