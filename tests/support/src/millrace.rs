//! Millrace itself as a process, for tests that kill it.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::child;
use crate::free_port;
use crate::parse_lsn;

/// How to run `millrace up`.
#[derive(Debug, Clone)]
pub struct MillraceOptions {
    command: Vec<String>,
    data_dir: PathBuf,
    args: Vec<String>,
    env: Vec<(String, String)>,
    kafka_port: u16,
    http_port: u16,
}

impl MillraceOptions {
    /// `millrace serve --data-dir DIR`, likewise.
    pub fn serve(data_dir: &Path) -> Self {
        MillraceOptions { command: vec!["serve".to_owned()], ..Self::new(data_dir, "") }
    }

    /// `millrace config COMMAND --data-dir DIR`, likewise.
    pub fn config(command: &str, data_dir: &Path) -> Self {
        MillraceOptions { command: vec!["config".to_owned(), command.to_owned()], ..Self::new(data_dir, "") }
    }

    /// `millrace up URL --data-dir DIR` with both listeners on free ports of 127.0.0.1.
    pub fn new(data_dir: &Path, url: &str) -> Self {
        MillraceOptions {
            command: vec!["up".to_owned(), url.to_owned()],
            data_dir: data_dir.to_owned(),
            args: Vec::new(),
            env: Vec::new(),
            kafka_port: free_port(),
            http_port: free_port(),
        }
    }

    /// More arguments.
    pub fn args(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(|arg| (*arg).to_owned()));
        self
    }

    /// Its Kafka listener's port, instead of a free one.
    pub fn kafka_port(mut self, port: u16) -> Self {
        self.kafka_port = port;
        self
    }

    /// Its HTTP listener's port, instead of a free one.
    pub fn http_port(mut self, port: u16) -> Self {
        self.http_port = port;
        self
    }

    /// A variable of its environment.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// A `millrace up` process; restarted, it keeps its ports, its data directory and its output file.
#[derive(Debug)]
pub struct Millrace {
    child: Option<Child>,
    options: MillraceOptions,
    output: tempfile::NamedTempFile,
}

impl Millrace {
    /// Starts `millrace up` and waits until `/health/ready` answers 200. Panics with its output if it ends before.
    pub async fn up(data_dir: &Path, url: &str, args: &[&str]) -> Millrace {
        Self::start(MillraceOptions::new(data_dir, url).args(args)).await
    }

    /// The same with all options.
    pub async fn start(options: MillraceOptions) -> Millrace {
        let mut process = Self::spawn(options);
        process.wait_ready().await;
        process
    }

    /// Starts it and does not wait: for starts that must fail, or be killed in the middle.
    pub fn spawn(options: MillraceOptions) -> Millrace {
        let output = tempfile::NamedTempFile::new().expect("make an output file");
        let mut process = Millrace { child: None, options, output };
        process.spawn_again();
        process
    }

    /// Starts it again after it has ended, and does not wait.
    pub fn spawn_again(&mut self) {
        assert!(self.child.is_none(), "millrace runs already");
        let options = &self.options;
        let mut command = Command::new(binary());
        command.args(&options.command).arg("--data-dir").arg(&options.data_dir);
        command.arg("--kafka-listen").arg(format!("127.0.0.1:{}", options.kafka_port));
        command.arg("--http-listen").arg(format!("127.0.0.1:{}", options.http_port));
        command.args(&options.args).envs(options.env.iter().map(|(name, value)| (name, value)));
        let output =
            fs::OpenOptions::new().append(true).open(self.output.path()).expect("open the output file");
        command.stdin(Stdio::null());
        command.stdout(output.try_clone().expect("share the output file")).stderr(output);
        self.child = Some(child::spawn(command, libc::SIGKILL).expect("start millrace"));
    }

    /// More arguments for the next start.
    pub fn add_args(&mut self, args: &[&str]) {
        self.options.args.extend(args.iter().map(|arg| (*arg).to_owned()));
    }

    /// SIGKILL if it still runs, then a new start, until it is ready.
    pub async fn restart(&mut self) {
        if self.child.is_some() {
            self.kill9();
        }
        self.spawn_again();
        self.wait_ready().await;
    }

    /// Waits until `/health/ready` answers 200.
    pub async fn wait_ready(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while Instant::now() < deadline {
            let child = self.child.as_mut().expect("millrace runs");
            if let Some(status) = child.try_wait().expect("look at millrace") {
                panic!("millrace ended before it was ready, with {status}:\n{}", self.output());
            }
            if self.get("/health/ready").is_some_and(|(status, _)| status == 200) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("millrace was not ready within a minute:\n{}", self.output());
    }

    /// Waits until its one task is in a state, and gives the reason.
    pub async fn wait_state(&self, state: &str) -> String {
        let deadline = Instant::now() + Duration::from_secs(60);
        while Instant::now() < deadline {
            if let Some(task) = self.task().filter(|task| task["state"] == state) {
                return task["reason"].as_str().unwrap_or_default().to_owned();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the task was not {state} within a minute: {:?}\n{}", self.task(), self.output());
    }

    /// What `/api/v1/tasks` says of its one task; `None` when it does not answer.
    pub fn task(&self) -> Option<Value> {
        let (_, body) = self.get("/api/v1/tasks")?;
        let mut tasks: Value = serde_json::from_str(&body).ok()?;
        tasks.get_mut(0).map(Value::take)
    }

    /// Waits until everything below an LSN is durable in the log of its one task.
    pub async fn wait_durable(&self, lsn: &str) {
        let deadline = Instant::now() + Duration::from_secs(120);
        while Instant::now() < deadline {
            let task = self.task();
            let durable = task.as_ref().and_then(|task| task["durable_lsn"].as_str());
            if durable.is_some_and(|durable| parse_lsn(durable) >= parse_lsn(lsn)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{lsn} was not durable within two minutes:\n{}", self.output());
    }

    /// SIGKILL, and waits for its end.
    pub fn kill9(&mut self) {
        let mut child = self.child.take().expect("millrace runs");
        child.kill().expect("kill millrace");
        child.wait().expect("wait for millrace");
    }

    /// Sends SIGTERM and does not wait.
    pub fn sigterm(&self) {
        child::signal(self.child.as_ref().expect("millrace runs"), libc::SIGTERM);
    }

    /// Waits for its end by itself, or after [`Millrace::sigterm`].
    pub async fn wait(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("millrace runs");
        match child::wait(&mut child, Duration::from_secs(60)).await {
            Some(status) => status,
            None => {
                child::end(&mut child, libc::SIGKILL);
                panic!("millrace did not end within a minute:\n{}", self.output());
            }
        }
    }

    /// Whether it was started and neither killed nor waited for since.
    pub fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// All that it has printed since its first start.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.output.path()).unwrap_or_default()).into_owned()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("millrace runs").id()
    }

    /// `bootstrap.servers` for clients.
    pub fn bootstrap(&self) -> String {
        format!("127.0.0.1:{}", self.options.kafka_port)
    }

    /// Port of its Kafka listener.
    pub fn kafka_port(&self) -> u16 {
        self.options.kafka_port
    }

    /// Port of its HTTP listener.
    pub fn http_port(&self) -> u16 {
        self.options.http_port
    }

    /// GET over HTTP: status and body, `None` when it does not answer.
    pub fn get(&self, path: &str) -> Option<(u16, String)> {
        self.request("GET", path, "", "")
    }

    /// Any request over HTTP, with more headers, a line each.
    pub fn request(&self, method: &str, path: &str, headers: &str, body: &str) -> Option<(u16, String)> {
        let address = SocketAddr::from(([127, 0, 0, 1], self.options.http_port));
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {length}\r\n\
             {headers}\r\n{body}"
        )
        .ok()?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).ok()?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some((status, body.to_owned()))
    }
}

impl Drop for Millrace {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            child::end(child, libc::SIGKILL);
        }
    }
}

/// The binary beside the running test: `target/<profile>/deps/<test>` belongs to `target/<profile>/millrace`.
fn binary() -> PathBuf {
    let test = std::env::current_exe().expect("find the running test's path");
    let binary = test.ancestors().nth(2).map(|profile| profile.join("millrace"));
    binary
        .filter(|path| path.is_file())
        .expect("find the millrace binary beside the test: cargo builds it for tests/")
}
